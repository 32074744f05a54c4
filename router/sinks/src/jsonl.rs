//! The sink `jsonl`: appends documents to a file or standard output, one JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Document, Sink, SinkError};
use crate::settings;

/// A file of lines. Writing blocks, so it has its own thread: a hung disk delays no other sink.
#[derive(Debug)]
pub(super) struct JsonlSink {
    settings: settings::Jsonl,
    writer: Option<WriterThread>,
}

/// The writer thread, one for the sink's lifetime: threads that come and go leave their heaps
/// behind. It ends when this is dropped.
#[derive(Debug)]
struct WriterThread {
    batches: mpsc::Sender<Vec<Arc<Document>>>,
    written: mpsc::Receiver<io::Result<()>>,
    /// The thread still writes a batch after its deadline.
    busy: bool,
}

impl JsonlSink {
    pub(super) fn new(settings: settings::Jsonl) -> Self {
        Self { settings, writer: None }
    }
}

impl WriterThread {
    fn start(settings: settings::Jsonl) -> Self {
        // One batch at a time.
        let (batches, mut work) = mpsc::channel::<Vec<Arc<Document>>>(1);
        let (done, written) = mpsc::channel(1);
        drop(tokio::task::spawn_blocking(move || {
            let mut lines = LineFile { settings, file: None };
            while let Some(batch) = work.blocking_recv() {
                let written = lines.append(batch.iter().map(|it| &*it.json));
                drop(batch);
                if done.blocking_send(written).is_err() {
                    return;
                }
            }
        }));
        Self { batches, written, busy: false }
    }

    /// `None`: the thread is gone.
    async fn write(&mut self, batch: Vec<Arc<Document>>) -> Option<io::Result<()>> {
        if self.busy {
            // The result of a batch after its deadline: not needed.
            drop(self.written.recv().await?);
            self.busy = false;
        }
        self.batches.try_send(batch).ok()?;
        self.busy = true;
        let written = self.written.recv().await;
        self.busy = false;
        written
    }
}

#[async_trait]
impl Sink for JsonlSink {
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        let settings = &self.settings;
        let writer = self.writer.get_or_insert_with(|| WriterThread::start(settings.clone()));
        let written = writer.write(batch.to_vec()).await;
        if written.is_none() {
            self.writer = None;
        }
        written.unwrap_or_else(|| Err(io::Error::other("its writer thread failed"))).map_err(SinkError::again)
    }
}

#[derive(Debug)]
struct LineFile {
    settings: settings::Jsonl,
    file: Option<File>,
}

impl LineFile {
    /// Appends all lines or none.
    fn append<'a>(&mut self, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let Some(path) = self.settings.path.clone() else { return write(io::stdout().lock(), lines) };
        let written = self.append_at(&path, lines);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    fn append_at<'a>(&mut self, path: &Path, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let large = |file: &File| self.settings.rotate_size.is_some_and(|most| len(file) >= most);
        let file = self.file.take().filter(|file| is_at(file, path)).map_or_else(|| open(path), Ok)?;
        let mut file = if large(&file) {
            rotate(path, self.settings.rotate_keep)?;
            open(path)?
        } else {
            file
        };
        let before = len(&file);
        let written = write(&mut file, lines);
        if let Err(error) = written.and_then(|()| if self.settings.fsync { file.sync_data() } else { Ok(()) })
        {
            // A full disk took a part of the batch, and the whole batch will be retried. Only a
            // regular file can be truncated.
            file.set_len(before).unwrap_or(());
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }
}

/// In small pieces: one string of a whole batch would leave a large hole in the heap each time.
fn write<'a>(out: impl Write, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    let write = || {
        for line in lines {
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    let written = write();
    // Without this, the drop would retry the failed write.
    drop(out.into_parts());
    written
}

/// 0 unless it is a regular file.
fn len(file: &File) -> u64 {
    file.metadata().map_or(0, |it| it.len())
}

/// Whether the file still has this name: it may have been renamed or removed.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Readable by root only: documents name pods and images. Completes a line that a dead router left
/// unfinished.
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

/// Log rotation: `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2`, and the last one is removed.
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

    fn lines(folder: &Path, change: impl FnOnce(&mut settings::Jsonl)) -> LineFile {
        let mut settings = settings::Jsonl::at(Some(folder.join("a")));
        change(&mut settings);
        LineFile { settings, file: None }
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap_or_default()
    }

    #[test]
    fn file_rotated_at_size_and_oldest_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = lines(folder.path(), |it| (it.rotate_size, it.rotate_keep) = (Some(4), 2));
        for text in ["one", "two", "three", "four"] {
            lines.append([text].into_iter()).unwrap();
        }
        let found = ["a", "a.1", "a.2", "a.3"].map(|name| read(folder.path(), name));
        assert_eq!(found, ["four\n", "three\n", "two\n", ""]);
    }

    #[test]
    fn file_renamed_or_removed_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = lines(folder.path(), |_| {});
        lines.append(["one"].into_iter()).unwrap();
        fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
        lines.append(["two"].into_iter()).unwrap();
        assert_eq!((read(folder.path(), "b"), read(folder.path(), "a")), ("one\n".into(), "two\n".into()));
        fs::remove_file(folder.path().join("a")).unwrap();
        lines.append(["three"].into_iter()).unwrap();
        assert_eq!(read(folder.path(), "a"), "three\n");
    }

    #[test]
    fn line_unfinished_is_completed_at_open() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "{\"v\":").unwrap();
        lines(folder.path(), |it| it.fsync = true).append(["{}"].into_iter()).unwrap();
        assert_eq!(read(folder.path(), "a"), "{\"v\":\n{}\n");
    }
}
