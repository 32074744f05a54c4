//! Messages for the lane of lifecycle events.

use std::path::PathBuf;

use tokio::time::Instant;

use coroner_containerd::holds::Published;
use coroner_core::ruling::TaskEvent;
use coroner_journal::Ack;

/// A message for the lane.
#[derive(Debug)]
pub enum Task {
    /// Publish an event.
    Publish(Box<Publish>),
    /// The container has ended, whether the router or the shim publishes that.
    Ended(String),
}

/// An event to publish.
#[derive(Debug)]
pub struct Publish {
    /// Id of the signal.
    pub signal: String,
    /// Id of the container.
    pub container: String,
    /// The containerd namespace.
    pub namespace: String,
    /// The bundle, where a shim reported it.
    pub bundle: Option<PathBuf>,
    /// The exec it is about; `None`: its container, or the container's init.
    pub exec: Option<String>,
    /// The event.
    pub event: TaskEvent,
    /// When it was ruled.
    pub ruled: Instant,
    /// A repeat: it was published before, and containerd has restarted since.
    pub repeat: bool,
    /// Set on the last action of a signal.
    pub ack: Option<Ack>,
}

impl Publish {
    pub(super) fn is_held(&self) -> bool {
        matches!(self.event, TaskEvent::Exit { held: true, .. })
    }

    pub(super) fn exec(&self) -> Option<&str> {
        self.exec.as_deref()
    }

    /// Releases a held exit with the result of its barrier.
    pub(super) fn release(&mut self, published: Published) {
        if let TaskEvent::Exit { pid, status, held, .. } = &mut self.event {
            *status = published.status.or(*status);
            *pid = pid.or(published.pid);
            *held = false;
        }
    }
}
