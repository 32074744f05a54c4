//! The tasks and threads of a router. A task that exits unexpectedly ends the router and is named
//! in the error.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

use super::RunError;

/// Timeout of the rest once the lanes were signalled to give up.
const LAST: Duration = Duration::from_secs(1);

/// All tasks, and their two shutdown signals: stop, and give up.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    tasks: JoinSet<usize>,
    names: Vec<(Id, String)>,
    stop: watch::Sender<bool>,
    give_up: watch::Sender<bool>,
}

impl Tasks {
    /// Turns true when the sources must end.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Turns true when the lanes must give up.
    pub(super) fn over(&self) -> watch::Receiver<bool> {
        self.give_up.subscribe()
    }

    /// Adds a task that ends at the shutdown, or when its input closes.
    pub(super) fn add(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        self.add_counting(name, async {
            task.await;
            0
        });
    }

    /// Adds a task that returns how many actions it left unsent.
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

    /// Waits for a task that ends unexpectedly.
    pub(super) async fn ended(&mut self) -> RunError {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.error(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks: a recording ends by itself.
    pub(super) async fn dry(mut self) -> Result<(), RunError> {
        // The policy manager stops at this signal.
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if ended.is_err() {
                return Err(self.error(ended));
            }
        }
        Ok(())
    }

    /// Graceful shutdown: stops the sources and drains the lanes, which give up after the deadline.
    /// Returns how many actions are left unsent.
    pub(super) async fn drain(mut self, deadline: Duration) -> usize {
        self.stop.send_replace(true);
        let mut unsent = 0;
        if timeout(deadline, self.join(&mut unsent)).await.is_err() {
            self.give_up.send_replace(true);
            if timeout(LAST, self.join(&mut unsent)).await.is_err() {
                tracing::warn!(parts = self.tasks.len(), "tasks did not end before the timeout");
            }
        }
        if unsent > 0 {
            tracing::warn!(unsent, "actions not delivered; the next start resumes them");
        }
        unsent
    }

    async fn join(&mut self, unsent: &mut usize) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            match ended {
                Ok((_, count)) => *unsent += count,
                Err(_) => {
                    let error = self.error(ended);
                    tracing::error!(%error, "a task failed during the shutdown");
                }
            }
        }
    }

    fn error(&self, ended: Result<(Id, usize), JoinError>) -> RunError {
        let (id, reason) = match ended {
            Ok((id, _)) => (id, None),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let part = self.names.iter().find(|(it, _)| *it == id).map_or("unknown", |(_, name)| name).to_owned();
        RunError::Ended { part, reason }
    }
}
