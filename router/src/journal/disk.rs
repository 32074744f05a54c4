//! What the writer does to files, apart so that a test can cut it short at every step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::JournalError;
use super::read::{SUFFIX, segments};

const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";

/// The file that is appended to, and those before it.
pub(super) trait Disk {
    /// Begins a file that is not to be seen yet.
    fn begin(&mut self, number: u64) -> io::Result<()>;
    /// Appends to it; on an error, some of the bytes may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Takes back what was appended past `length`.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Lets it be seen.
    fn show(&mut self, number: u64) -> io::Result<()>;
    /// Goes on with the file before it.
    fn go_back(&mut self);
    /// Removes every file before this one.
    fn remove_before(&mut self, number: u64) -> io::Result<()>;
}

/// A folder that this process alone writes to.
#[derive(Debug)]
pub(super) struct Folder {
    directory: PathBuf,
    _lock: File,
    file: Option<File>,
    before: Option<File>,
}

impl Folder {
    /// Makes it if it is not there, and takes it.
    pub(super) fn take(directory: &Path) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Folder { path: directory.to_owned(), source };
        if !directory.is_dir() {
            // Those above it are for others too: the control socket is there.
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
        // For the one that is refused; the lock itself ends with this process. A full disk has no room for it.
        let told = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(error) = told {
            tracing::warn!(path = %path.display(), %error, "the journal's lock does not say whose it is");
        }
        Ok(Self { directory: directory.to_owned(), _lock: lock, file: None, before: None })
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.directory.join(format!("{number:010}{suffix}"))
    }

    fn open(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("no journal file could be made yet"))
    }
}

impl Disk for Folder {
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

    fn show(&mut self, number: u64) -> io::Result<()> {
        fs::rename(self.path(number, PARTIAL), self.path(number, SUFFIX))?;
        self.before = None;
        Ok(())
    }

    fn go_back(&mut self) {
        self.file = self.before.take();
    }

    fn remove_before(&mut self, number: u64) -> io::Result<()> {
        for (_, path) in segments(&self.directory)?.into_iter().filter(|(it, _)| *it < number) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}
