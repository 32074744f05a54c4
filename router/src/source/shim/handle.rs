//! What a shim that embeds the router tells it, in process: what others say over the source's socket.

use std::time::{SystemTime, UNIX_EPOCH};

use coroner_proto::shim::{KillRequest, Process, RequestedRequest, RuleRequest};
use protobuf::MessageField;
use tokio::sync::{mpsc, oneshot};

use super::service::{Ask, Asked};

/// Why there is no ruling.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// An id that is none, say.
    #[error("{0}")]
    Refused(String),
    /// The router stops: the real status stands.
    #[error("the router is stopping")]
    Stopping,
}

/// The way into an embedded router, for one shim. Cheap to clone.
///
/// The shim is in mode `sole`: nobody else publishes TaskOOM and TaskExit for its containers.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) namespace: String,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) asked: Asked,
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its container.
    pub container_id: String,
    /// `None`: the container's init.
    pub exec_id: Option<String>,
    /// As the node counts.
    pub pid: Option<u32>,
    /// As containerd counts: the exit code, or 128 + signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

impl Handle {
    /// A container was created: who it is is read from its bundle, and its kills are counted from now on where `pid`, its init, is in a cgroup of this node.
    pub async fn created(
        &self,
        container_id: &str,
        bundle: &str,
        pid: Option<u32>,
    ) -> Result<(), HandleError> {
        let (namespace, id, bundle) = (self.namespace.clone(), container_id.to_owned(), bundle.to_owned());
        self.ask(|answer| Ask::Created { namespace, id, bundle, pid, answer })
            .await?
            .map_err(HandleError::Refused)
    }

    /// A signal was sent to a container, by whoever runs it. `seq` counts such calls, from 1.
    pub async fn kill_requested(
        &self,
        container_id: &str,
        seq: u64,
        signal: u32,
        all: bool,
    ) -> Result<(), HandleError> {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let request = KillRequest {
            seq,
            proxy_id: "embedded".to_owned(),
            container_id: container_id.to_owned(),
            signal,
            all,
            at_ns: unix_ns(SystemTime::now()),
            boot_ns: boot.tv_sec.unsigned_abs() * 1_000_000_000 + boot.tv_nsec.unsigned_abs(),
            ..KillRequest::default()
        };
        let request = RequestedRequest {
            namespace: self.namespace.clone(),
            requests: vec![request],
            ..RequestedRequest::default()
        };
        self.ask(|answer| Ask::Requested(Box::new(request), answer)).await
    }

    /// A process has ended: the status to tell whoever waits for it, once every kill before it is delivered. TaskExit follows by itself.
    ///
    /// Bound the wait: a containerd that is away holds it up. On an error, and when the time is over, the real status stands.
    pub async fn exit(&self, exit: Exit) -> Result<u32, HandleError> {
        let request = RuleRequest {
            namespace: self.namespace.clone(),
            process: MessageField::some(Process {
                container_id: exit.container_id,
                exec_id: exit.exec_id.unwrap_or_default(),
                pid: exit.pid,
                ..Process::default()
            }),
            status: exit.status,
            exited_at_ns: Some(unix_ns(exit.at)),
            ..RuleRequest::default()
        };
        let counted = self.asked.settle_before(&self.asks, &request).await;
        let request = Box::new(request);
        let id =
            self.ask(|answer| Ask::Rule { request, counted, answer }).await?.map_err(HandleError::Refused)?;
        Ok(self.asked.holds.ruled(&id).await.unwrap_or(exit.status))
    }

    /// A container was deleted: nothing more will be told of it.
    pub async fn deleted(&self, container_id: &str) -> Result<(), HandleError> {
        let id = container_id.to_owned();
        self.ask(|answer| Ask::Deleted { id, answer }).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, HandleError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| HandleError::Stopping)?;
        answered.await.map_err(|_| HandleError::Stopping)
    }
}

fn unix_ns(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
