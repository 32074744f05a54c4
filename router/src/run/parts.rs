//! The tasks and threads of a router. One that ends before it is told to ends the router, and is named.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

use super::RunError;

/// What was taken may take this long to leave once the router shall stop.
const DRAIN: Duration = Duration::from_secs(5);
/// What the rest may take once lanes were told to give up.
const LAST: Duration = Duration::from_secs(1);

/// All of them, and the two words they listen to.
#[derive(Debug, Default)]
pub(super) struct Parts {
    tasks: JoinSet<usize>,
    names: Vec<(Id, String)>,
    stop: watch::Sender<bool>,
    give_up: watch::Sender<bool>,
}

impl Parts {
    /// Turns true when sources shall end.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Turns true when lanes shall give up what has not left.
    pub(super) fn over(&self) -> watch::Receiver<bool> {
        self.give_up.subscribe()
    }

    /// Adds a task that ends when the router stops, or when its input closes.
    pub(super) fn add(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        self.add_counting(name, async {
            task.await;
            0
        });
    }

    /// The same of one that returns how many actions it left unsent.
    pub(super) fn add_counting(&mut self, name: String, task: impl Future<Output = usize> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.names.push((handle.id(), name));
    }

    /// Adds a thread that ends when its input closes.
    pub(super) fn add_thread(&mut self, name: String, task: impl FnOnce() + Send + 'static) {
        let handle = self.tasks.spawn_blocking(|| {
            task();
            0
        });
        self.names.push((handle.id(), name));
    }

    /// Waits for one that ends by itself.
    pub(super) async fn ended(&mut self) -> RunError {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.error(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for all of them: a recording ends by itself.
    pub(super) async fn dry(mut self) -> Result<(), RunError> {
        // The policies' keeper hears this, and reads no further.
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if ended.is_err() {
                return Err(self.error(ended));
            }
        }
        Ok(())
    }

    /// Says that they shall stop, and lets what was taken leave.
    pub(super) async fn drain(mut self) {
        self.stop.send_replace(true);
        let mut unsent = 0;
        if timeout(DRAIN, self.join(&mut unsent)).await.is_err() {
            self.give_up.send_replace(true);
            if timeout(LAST, self.join(&mut unsent)).await.is_err() {
                tracing::warn!(parts = self.tasks.len(), "parts that did not end in time are left behind");
            }
        }
        if unsent > 0 {
            tracing::warn!(unsent, "actions left unsent; the next start goes on with them");
        }
    }

    async fn join(&mut self, unsent: &mut usize) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            match ended {
                Ok((_, count)) => *unsent += count,
                Err(_) => {
                    let error = self.error(ended);
                    tracing::error!(%error, "a part failed while the router ran dry");
                }
            }
        }
    }

    fn error(&self, ended: Result<(Id, usize), JoinError>) -> RunError {
        let (id, reason) = match ended {
            Ok((id, _)) => (id, "nobody told it to".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        let part = self.names.iter().find(|(it, _)| *it == id).map_or("a part", |(_, name)| name).to_owned();
        RunError::Ended { part, reason }
    }
}
