//! File operations of the writer, behind a trait so that tests and the
//! simulation can interrupt them at every step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::JournalError;
use super::recovery::{SUFFIX, segments};

const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";

/// The segment that is appended to, and those before it.
pub trait Disk {
    /// Begins a segment under a temporary name.
    fn begin(&mut self, number: u64) -> io::Result<()>;
    /// Appends to it; on an error, some of the bytes may be in the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Truncates it to `length`.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Gives it its final name.
    fn finish(&mut self, number: u64) -> io::Result<()>;
    /// Returns to the segment before it.
    fn revert(&mut self);
    /// Removes every segment before this one.
    fn remove_before(&mut self, number: u64) -> io::Result<()>;
}

/// A folder that is locked for this process.
#[derive(Debug)]
pub struct JournalFolder {
    directory: PathBuf,
    _lock: File,
    file: Option<File>,
    before: Option<File>,
}

impl JournalFolder {
    /// Creates the folder if it is missing, and locks it.
    pub(super) fn take(directory: &Path) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Folder { path: directory.to_owned(), source };
        if !directory.is_dir() {
            // The parents are shared with others, such as the control socket: default rights.
            let above = directory.parent().map_or(Ok(()), fs::create_dir_all);
            above.and_then(|()| fs::DirBuilder::new().mode(0o700).create(directory)).map_err(failed)?;
        }
        let path = directory.join(LOCK);
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut lock = opened.map_err(failed)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            lock.read_to_string(&mut pid).map_err(failed)?;
            return Err(JournalError::Taken { path: directory.to_owned(), pid: pid.trim().to_owned() });
        }
        // The pid is for the error of a second router; the lock itself ends with this process. A
        // full disk has no room for it.
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot write the process id to the journal's lock file");
        }
        Ok(Self { directory: directory.to_owned(), _lock: lock, file: None, before: None })
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.directory.join(format!("{number:010}{suffix}"))
    }

    fn open(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("no journal segment could be created yet"))
    }
}

impl Disk for JournalFolder {
    fn begin(&mut self, number: u64) -> io::Result<()> {
        let path = self.path(number, PARTIAL);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        self.before = self.file.replace(file);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&mut self.open()?).write_all(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.open()?.set_len(length)
    }

    fn finish(&mut self, number: u64) -> io::Result<()> {
        fs::rename(self.path(number, PARTIAL), self.path(number, SUFFIX))?;
        self.before = None;
        Ok(())
    }

    fn revert(&mut self) {
        self.file = self.before.take();
    }

    fn remove_before(&mut self, number: u64) -> io::Result<()> {
        for (_, path) in segments(&self.directory)?.into_iter().filter(|(it, _)| *it < number) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}
