//! What the lane of lifecycle events is handed.

use std::path::PathBuf;

use tokio::time::Instant;

use crate::arrival::Ack;
use crate::ruling::TaskEvent;

/// What the lane is handed.
#[derive(Debug)]
pub enum Task {
    /// Something to publish.
    Publish(Box<Publish>),
    /// A container has ended, whoever publishes that.
    Ended(String),
}

/// An event to publish.
#[derive(Debug)]
pub struct Publish {
    /// The signal's id.
    pub signal: String,
    /// Its container.
    pub container: String,
    /// Its containerd namespace.
    pub namespace: String,
    /// Its bundle, where a shim told it.
    pub bundle: Option<PathBuf>,
    /// Which event.
    pub event: TaskEvent,
    /// When it was ruled.
    pub ruled: Instant,
    /// It was published before, and containerd has come back since.
    pub repeat: bool,
    /// Set on the last action of its signal.
    pub ack: Option<Ack>,
}

impl Publish {
    pub(super) fn is_held(&self) -> bool {
        matches!(self.event, TaskEvent::Exit { held: true, .. })
    }
}
