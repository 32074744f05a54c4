//! The control of a running, embedded router.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Error;
use crate::admin::{Status, StatusReader};
use crate::assembly::{Assembly, DRAIN, RunError};
use coroner_sources::shim::{EmbeddedShim, EmbeddedShimError, Exit, OomKill};

/// How many actions are left undelivered, or why the router failed.
type RunResult = Result<usize, Arc<RunError>>;

/// A running router in the process of a shim. Cheap to clone.
///
/// The shim reports what happens to its containers, and the router publishes TaskOOM and TaskExit
/// in its place (mode `sole`). When the last handle is dropped, the router shuts down with a
/// deadline of 5 s.
#[derive(Clone, Debug)]
pub struct Handle {
    shim: EmbeddedShim,
    status: StatusReader,
    /// The deadline, once the shutdown is requested.
    shutdown: watch::Sender<Option<Duration>>,
    ended: watch::Receiver<Option<RunResult>>,
}

impl Handle {
    /// Runs the assembly until the shutdown is requested.
    pub(super) fn start(assembly: Assembly, shim: EmbeddedShim, status: StatusReader) -> Self {
        let (shutdown, mut requested) = watch::channel(None);
        let (report, ended) = watch::channel(None);
        let deadline = async move {
            // An error: every handle was dropped.
            let deadline = requested.wait_for(Option::is_some).await.ok().and_then(|it| *it);
            deadline.unwrap_or(DRAIN)
        };
        #[expect(clippy::disallowed_methods, reason = "`shutdown` waits for its end")]
        tokio::spawn(async move {
            let ended = assembly.until_deadline(deadline).await;
            if let Err(error) = &ended {
                tracing::error!(%error, "the embedded router failed");
            }
            report.send_replace(Some(ended.map_err(Arc::new)));
        });
        Self { shim, status, shutdown, ended }
    }

    #[cfg(test)]
    pub(super) fn ended(&self) -> watch::Receiver<Option<RunResult>> {
        self.ended.clone()
    }

    /// Reports that a container was created. Its owner is read from its OCI bundle. If `pid`, its
    /// init, is in a cgroup of this node, the router counts its OOM kills from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the id is malformed, [`Error::Stopping`].
    pub async fn created(&self, container_id: &str, bundle: &str, pid: Option<u32>) -> Result<(), Error> {
        Ok(self.shim.created(container_id, bundle, pid).await?)
    }

    /// Reports that a signal was sent to a container through its runtime, `all`: to all of its
    /// processes. `number` counts such calls of this shim, from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Stopping`].
    pub async fn kill_requested(
        &self,
        container_id: &str,
        number: u64,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        Ok(self.shim.kill_requested(container_id, number, signal, all).await?)
    }

    /// Reports an OOM kill. It is ruled once for each total of the container's counter, so that a
    /// report may be repeated (idempotent). Returns when the journal has it, after 1.5 s at the
    /// latest.
    ///
    /// Where the router counts the container's kills itself, or an agent in its guest does, that
    /// counter decides, and this report only has it read.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the id is malformed or the container was deleted, [`Error::Stopping`].
    pub async fn oom_kill(&self, kill: OomKill) -> Result<(), Error> {
        Ok(self.shim.oom_kill(kill).await?)
    }

    /// Reports the end of a process, and returns its ruled status, for the shim's reply to Wait. By
    /// then every OOM kill before it is delivered; TaskExit is published afterwards. A repeated
    /// report returns the same status.
    ///
    /// Use a timeout: while containerd is unavailable there is no ruling. At the timeout, and after
    /// an error, reply with the real status (fail open). The router publishes TaskExit once it can.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the id is malformed or the container was deleted, [`Error::Stopping`].
    pub async fn exit(&self, exit: Exit) -> Result<u32, Error> {
        Ok(self.shim.exit(exit).await?)
    }

    /// Reports that a container was deleted, so that the router drops what it has of it.
    ///
    /// # Errors
    ///
    /// [`Error::Stopping`].
    pub async fn deleted(&self, container_id: &str) -> Result<(), Error> {
        Ok(self.shim.deleted(container_id).await?)
    }

    /// The status of the router: the document of `GET /status`.
    ///
    /// # Errors
    ///
    /// [`Error::Stopping`].
    pub async fn status(&self) -> Result<Status, Error> {
        self.status.read(0).await.ok_or(Error::Stopping)
    }

    /// Shuts the router down gracefully: it accepts nothing new, and delivers what it has until
    /// `deadline` has passed. Returns at most 1 s later. Of several calls the first one sets the
    /// deadline; all of them wait for the end.
    ///
    /// # Errors
    ///
    /// [`Error::Undelivered`] if the deadline passed before everything was delivered,
    /// [`Error::Failed`] if a task had exited unexpectedly.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Error> {
        self.shutdown
            .send_if_modified(|requested| requested.replace(requested.unwrap_or(deadline)).is_none());
        let mut ended = self.ended.clone();
        // An error: the runtime dropped the router's task.
        let ended = ended.wait_for(Option::is_some).await.map_err(|_| Error::Stopping)?.clone();
        match ended {
            Some(Ok(0)) => Ok(()),
            Some(Ok(count)) => Err(Error::Undelivered { count }),
            Some(Err(source)) => Err(Error::Failed { source }),
            None => Err(Error::Stopping),
        }
    }
}

impl From<EmbeddedShimError> for Error {
    fn from(error: EmbeddedShimError) -> Self {
        match error {
            EmbeddedShimError::Refused(reason) => Self::Refused { reason },
            EmbeddedShimError::Stopping => Self::Stopping,
        }
    }
}
