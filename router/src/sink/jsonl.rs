//! The sink `jsonl`: appends documents to a file or standard output, one JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Document, Sink, SinkError};
use crate::config;

/// A file of lines. Writing blocks, so it is done on a thread of its own: a hung disk stalls nobody else.
#[derive(Debug)]
pub(super) struct Jsonl {
    settings: config::Jsonl,
    /// `None`: nothing is open, or a thread has it.
    lines: Option<Lines>,
    /// The thread that writes, kept until it is done even if nobody waited: a hung disk must not gather threads.
    writer: Option<JoinHandle<(Lines, io::Result<()>)>>,
}

impl Jsonl {
    pub(super) fn new(settings: config::Jsonl) -> Self {
        Self { settings, lines: None, writer: None }
    }

    async fn written(&mut self) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let done = writer.await;
        self.writer = None;
        let (lines, written) = done.map_err(io::Error::other)?;
        self.lines = Some(lines);
        written
    }
}

#[async_trait]
impl Sink for Jsonl {
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        // What became of a batch that was waited for no longer was told then.
        self.written().await.unwrap_or(());
        let begun = || Lines { settings: self.settings.clone(), file: None };
        let mut lines = self.lines.take().unwrap_or_else(begun);
        let text = Document::lines(batch);
        self.writer = Some(tokio::task::spawn_blocking(move || {
            let written = lines.append(&text);
            (lines, written)
        }));
        self.written().await.map_err(SinkError::again)
    }
}

#[derive(Debug)]
struct Lines {
    settings: config::Jsonl,
    file: Option<File>,
}

impl Lines {
    /// All of it, or nothing.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let Some(path) = self.settings.path.clone() else {
            let mut out = io::stdout().lock();
            return out.write_all(text).and_then(|()| out.flush());
        };
        let written = self.append_at(&path, text);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    fn append_at(&mut self, path: &Path, text: &[u8]) -> io::Result<()> {
        let large = |file: &File| self.settings.rotate_size.is_some_and(|most| len(file) >= most);
        let file = self.file.take().filter(|file| is_at(file, path)).map_or_else(|| open(path), Ok)?;
        let mut file = if large(&file) {
            rotate(path, self.settings.rotate_keep)?;
            open(path)?
        } else {
            file
        };
        let before = len(&file);
        let fsync = self.settings.fsync;
        let write = |file: &mut File| {
            file.write_all(text)?;
            if fsync { file.sync_data() } else { Ok(()) }
        };
        if let Err(error) = write(&mut file) {
            // A disk that filled up took a part of it, and all of it comes again. What is no regular file cannot be cut, and has no length.
            file.set_len(before).unwrap_or(());
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }
}

/// Of what is no regular file 0.
fn len(file: &File) -> u64 {
    file.metadata().map_or(0, |it| it.len())
}

/// Whether the file is still the one of this name: others may have renamed or removed it.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Documents name pods and images: readable by root alone. A line that a dead router left unfinished is finished.
fn open(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() && !ends_whole(path)? {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

fn ends_whole(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2`, and the last gives way.
fn rotate(path: &Path, keep: u64) -> io::Result<()> {
    let name = |at: u64| match at {
        0 => path.to_owned(),
        _ => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{at}"));
            PathBuf::from(name)
        }
    };
    for at in (0..keep).rev() {
        match fs::rename(name(at), name(at + 1)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(folder: &Path, change: impl FnOnce(&mut config::Jsonl)) -> Lines {
        let mut settings = config::Jsonl::at(Some(folder.join("a")));
        change(&mut settings);
        Lines { settings, file: None }
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap_or_default()
    }

    #[test]
    fn a_large_file_is_renamed_and_the_oldest_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = lines(folder.path(), |it| (it.rotate_size, it.rotate_keep) = (Some(4), 2));
        for text in ["one\n", "two\n", "three\n", "four\n"] {
            lines.append(text.as_bytes()).unwrap();
        }
        let found = ["a", "a.1", "a.2", "a.3"].map(|name| read(folder.path(), name));
        assert_eq!(found, ["four\n", "three\n", "two\n", ""]);
    }

    #[test]
    fn a_file_that_others_rename_or_remove_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = lines(folder.path(), |_| {});
        lines.append(b"one\n").unwrap();
        fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
        lines.append(b"two\n").unwrap();
        assert_eq!((read(folder.path(), "b"), read(folder.path(), "a")), ("one\n".into(), "two\n".into()));
        fs::remove_file(folder.path().join("a")).unwrap();
        lines.append(b"three\n").unwrap();
        assert_eq!(read(folder.path(), "a"), "three\n");
    }

    #[test]
    fn a_line_left_unfinished_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "{\"v\":").unwrap();
        lines(folder.path(), |it| it.fsync = true).append(b"{}\n").unwrap();
        assert_eq!(read(folder.path(), "a"), "{\"v\":\n{}\n");
    }
}
