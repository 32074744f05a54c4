//! The sink `unix`: writes one JSON document a line to whoever listens on a unix socket.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Document, Sink, SinkError};

/// A socket of somebody else's.
#[derive(Debug)]
pub(super) struct Unix {
    path: PathBuf,
    /// Taken while it is written to: a line that was cut short ends with its connection. A reader that went away shows at the next write.
    stream: Option<UnixStream>,
}

impl Unix {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, stream: None }
    }

    async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => UnixStream::connect(&self.path).await?,
        };
        stream.write_all(lines).await?;
        self.stream = Some(stream);
        Ok(())
    }
}

#[async_trait]
impl Sink for Unix {
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        let written = self.write(&Document::lines(batch)).await;
        written.map_err(|error| SinkError::again(format!("{}: {error}", self.path.display())))
    }
}
