//! Sinks: destinations of documents, one file each behind one small trait. Read `unix` first, the
//! smallest. Delivery is at least once.

pub mod settings;
pub mod route;
pub mod url;
pub mod counts;
pub mod tap;
mod accounting;
mod backoff;
mod containerd;
mod dead_letter;
mod document;
mod jsonl;
mod lane;
mod lanes;
mod lifecycle;
mod oom_file;
mod fanout;
mod publish;
mod unix;
mod queue;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use document::Document;
pub use fanout::{Fanout, PlannedDelivery, Records};
pub use lane::Lane;
pub use lanes::Lanes;
pub use lifecycle::{Forward, InProcess, Lifecycle, LifecycleAccounting, Place};
pub use publish::{Publish, Task};

use crate::settings::SinkKind;

/// A destination of documents. Its lane has the queue, batches, retries, deadlines and counters.
#[async_trait]
pub trait Sink: Send + std::fmt::Debug {
    /// Delivers a batch, oldest first, never empty. Returns once the whole batch is accepted; after
    /// an error the whole batch may be retried.
    ///
    /// The lane drops this future at the documents' deadline. The next call must work nevertheless:
    /// take a connection out of `self`, and put it back after success.
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError>;

    /// Documents per call at most.
    fn most(&self) -> usize {
        usize::MAX
    }
}

/// Why a batch was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A later attempt may succeed.
    #[error("{error}")]
    Again {
        /// The reason.
        error: String,
        /// Delay that the sink requests; `None`: no request.
        after: Option<Duration>,
    },
    /// The sink will never accept it.
    #[error("{0}")]
    Refused(String),
}

impl SinkError {
    /// A temporary error.
    pub fn again(error: impl ToString) -> Self {
        Self::Again { error: error.to_string(), after: None }
    }
}

/// Opens a sink with a lane of this kind; `None`: a sink of lifecycle events, which have a lane of
/// their own.
pub fn open(kind: &SinkKind, node: &str) -> Option<Box<dyn Sink>> {
    match kind {
        SinkKind::Containerd | SinkKind::OomFile => None,
        SinkKind::Jsonl(settings) => Some(Box::new(jsonl::JsonlSink::new(settings.clone()))),
        SinkKind::Webhook(settings) => Some(Box::new(webhook::WebhookSink::new((**settings).clone(), node))),
        SinkKind::Unix(path) => Some(Box::new(unix::UnixSink::new(path.clone()))),
    }
}
