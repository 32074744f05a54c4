//! The sink `unix`: writes one JSON document a line to the listener of a unix socket.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Document, Sink, SinkError};

/// Another program's socket.
#[derive(Debug)]
pub(super) struct UnixSink {
    path: PathBuf,
    /// Taken during a write: a line that was cut short ends with its connection. A reader that went
    /// away is noticed at the next write.
    stream: Option<UnixStream>,
}

impl UnixSink {
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
impl Sink for UnixSink {
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        let written = self.write(&Document::lines(batch)).await;
        written.map_err(|error| SinkError::again(format!("{}: {error}", self.path.display())))
    }
}
