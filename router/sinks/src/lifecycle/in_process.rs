//! A receiver of lifecycle events in this process, in place of containerd: that of the simulation.

use coroner_core::ruling::TaskEvent;
use tokio::sync::{mpsc, oneshot, watch};

use crate::containerd::Reconnected;
use crate::publish::Publish;

/// An event in flight to the receiver.
#[derive(Debug)]
pub struct Forward {
    /// Id of the signal.
    pub signal: String,
    /// The event.
    pub event: TaskEvent,
    /// Answers whether the receiver has accepted it. Dropped, the event is sent again.
    pub accepted: oneshot::Sender<bool>,
}

/// The receiver.
#[derive(Clone, Debug)]
pub struct InProcess {
    /// Receives the events. They are sent again until they are accepted.
    pub events: mpsc::Sender<Forward>,
    /// How often the receiver has started, from 1.
    pub starts: watch::Receiver<u64>,
    /// Actions that the lane holds, at most.
    pub capacity: usize,
}

impl InProcess {
    pub(super) async fn send(&self, publish: &Publish, attempts: &mut u32, error: &mut Option<String>) {
        loop {
            *attempts = attempts.saturating_add(1);
            let (accepted, answer) = oneshot::channel();
            let forward = Forward { signal: publish.signal.clone(), event: publish.event.clone(), accepted };
            if self.events.send(forward).await.is_err() {
                // Without a receiver nothing is accepted any more.
                std::future::pending::<()>().await;
            }
            match answer.await {
                Ok(true) => return,
                Ok(false) => *error = Some("it was refused".to_owned()),
                Err(_) => *error = Some("the receiver ended".to_owned()),
            }
        }
    }

    /// Resolves at a start later than this one.
    pub(super) async fn restarted(mut self, generation: u64) -> Reconnected {
        match self.starts.wait_for(|it| *it > generation).await.map(|it| *it) {
            Ok(generation) => Reconnected { generation, at_once: true },
            Err(_) => std::future::pending().await,
        }
    }
}
