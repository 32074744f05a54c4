//! Places documents go, one file each behind one small trait; `unix` is the smallest and the one to read first.

mod books;
mod containerd;
mod dead_letter;
mod document;
mod jsonl;
mod lane;
mod lanes;
mod lifecycle;
mod oom_file;
mod outlets;
mod publish;
mod unix;
mod waiting;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use document::Document;
pub use lane::Lane;
pub use lanes::Lanes;
pub use lifecycle::{Lifecycle, LifecycleBooks, Place};
pub use outlets::{Outlets, Planning, Records};
pub use publish::{Publish, Task};

use crate::config::SinkKind;

/// A place that takes documents. Queue, batches, retries, deadlines and counts are its lane's.
#[async_trait]
pub trait Sink: Send + std::fmt::Debug {
    /// Hands over a batch, the oldest first; never an empty one. Answers once all of it is taken, or why not: then all of it may come again.
    ///
    /// The lane drops this future when the documents' time is over. What it was in the midst of is to be left such that the
    /// next call starts afresh: take a connection out of `self`, and put it back when all went well.
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError>;

    /// Documents it takes in one call at most.
    fn most(&self) -> usize {
        usize::MAX
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It may be taken later.
    #[error("{error}")]
    Again {
        /// Why it was not now.
        error: String,
        /// When the sink wants to be asked again; `None`: it did not say.
        after: Option<Duration>,
    },
    /// The sink will never take it.
    #[error("{0}")]
    Refused(String),
}

impl SinkError {
    /// Not now, for this reason.
    pub fn again(error: impl ToString) -> Self {
        Self::Again { error: error.to_string(), after: None }
    }
}

/// A sink with a lane of this kind; `None`: one of lifecycle events, whose lane is another.
pub fn open(kind: &SinkKind, node: &str) -> Option<Box<dyn Sink>> {
    match kind {
        SinkKind::Containerd | SinkKind::OomFile => None,
        SinkKind::Jsonl(settings) => Some(Box::new(jsonl::Jsonl::new(settings.clone()))),
        SinkKind::Webhook(settings) => Some(Box::new(webhook::Webhook::new((**settings).clone(), node))),
        SinkKind::Unix(path) => Some(Box::new(unix::Unix::new(path.clone()))),
    }
}
