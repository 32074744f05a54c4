//! The sink `jsonl`: appends audit records to a file or standard output, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::counts::SinkCounts;

/// Where lines go.
#[derive(Debug)]
pub struct Jsonl {
    /// The sink's name.
    pub name: String,
    /// `None` is standard output.
    pub path: Option<PathBuf>,
    /// What is told of it.
    pub counts: Arc<SinkCounts>,
}

impl Jsonl {
    /// Writes until the lane closes. Blocks: it runs on its own thread, so that a hung disk stalls nobody else.
    pub fn run(self, mut lines: mpsc::Receiver<Arc<str>>) {
        let mut out = None;
        let mut lost = 0_u64;
        while let Some(first) = lines.blocking_recv() {
            // Everything that is waiting goes out in one write.
            let mut batch = vec![first];
            while let Ok(line) = lines.try_recv() {
                batch.push(line);
            }
            let outcome = self.write(&mut out, &batch);
            let count = if outcome.is_ok() { &self.counts.delivered } else { &self.counts.dropped_unwritten };
            count.more(batch.len() as u64);
            match outcome {
                Ok(()) if lost > 0 => {
                    tracing::info!(sink = self.name, lost, "audit records are written again");
                    lost = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    if lost == 0 {
                        tracing::warn!(sink = self.name, %error, "audit records cannot be written");
                    }
                    lost += batch.len() as u64;
                    out = None;
                }
            }
        }
    }

    fn write(&self, out: &mut Option<BufWriter<Box<dyn Write>>>, batch: &[Arc<str>]) -> io::Result<()> {
        let writer = match out {
            Some(writer) => writer,
            None => out.insert(BufWriter::new(self.open()?)),
        };
        for line in batch {
            writer.write_all(line.as_bytes())?;
        }
        writer.flush()
    }

    fn open(&self) -> io::Result<Box<dyn Write>> {
        match &self.path {
            Some(path) => Ok(Box::new(append(path)?)),
            None => Ok(Box::new(io::stdout())),
        }
    }
}

/// Audit records name pods and images: readable by root alone.
fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
