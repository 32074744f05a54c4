//! The source of a shim that embeds the router: in process what wrapped shims send over a socket.

use std::time::{SystemTime, UNIX_EPOCH};

use coroner_core::signal::ContainerId;
use coroner_proto::shim::{KillRequest, Process, RequestedRequest, RuleRequest};
use protobuf::MessageField;
use tokio::sync::{mpsc, oneshot};

use super::service::{ExitBarriers, SIGNALS_PER_EVENT, ShimRequest, written_in_time};

/// Why there is no ruling.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedShimError {
    /// The router refuses the request: the container id is malformed, or the container was deleted.
    #[error("{0}")]
    Refused(String),
    /// The router stops, so the real status is valid.
    #[error("the router is stopping")]
    Stopping,
}

/// A shim that embeds the router. Its source is in mode `sole`: the router alone publishes TaskOOM
/// and TaskExit for its containers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EmbeddedShim {
    pub(super) namespace: String,
    pub(super) mailbox: mpsc::Sender<ShimRequest>,
    pub(super) barriers: ExitBarriers,
}

/// The end of a process of a container: its init, or an exec.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exit {
    /// Id of the container.
    pub container_id: String,
    /// Id of the exec; `None`: the container's init.
    pub exec_id: Option<String>,
    /// Process id on the node. It is part of the event's id; `None`: unknown.
    pub pid: Option<u32>,
    /// The status as containerd counts it: the exit code, or 128 + signal.
    pub status: u32,
    /// When the process ended.
    pub at: SystemTime,
}

impl Exit {
    /// The end of the container's init, now.
    pub fn new(container_id: impl Into<String>, status: u32) -> Self {
        let container_id = container_id.into();
        Self { container_id, exec_id: None, pid: None, status, at: SystemTime::now() }
    }

    /// The same for an exec in place of the init.
    #[must_use]
    pub fn exec(self, id: impl Into<String>) -> Self {
        Self { exec_id: Some(id.into()), ..self }
    }

    /// The same with a process id on the node.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        Self { pid: Some(pid), ..self }
    }

    /// The same at another time.
    #[must_use]
    pub fn at(self, at: SystemTime) -> Self {
        Self { at, ..self }
    }
}

/// An OOM kill in a container, as its shim or its guest reports it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OomKill {
    /// Id of the container.
    pub container_id: String,
    /// The kernel's cumulative counter, `oom_kill` of `memory.events`; `None`: it was not read.
    pub total: Option<u64>,
}

impl OomKill {
    /// A kill without a counter, such as an OOM event of a runtime.
    pub fn new(container_id: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), total: None }
    }

    /// The same with the kernel's cumulative counter.
    #[must_use]
    pub fn total(self, total: u64) -> Self {
        Self { total: Some(total), ..self }
    }
}

impl EmbeddedShim {
    /// Reports that a container was created. Its owner is read from its bundle. Its kills are
    /// counted from now on if `pid`, its init, is in a cgroup of this node.
    pub async fn created(
        &self,
        container_id: &str,
        bundle: &str,
        pid: Option<u32>,
    ) -> Result<(), EmbeddedShimError> {
        let (namespace, id, bundle) = (self.namespace.clone(), container_id.to_owned(), bundle.to_owned());
        self.request(|answer| ShimRequest::Created { namespace, id, bundle, pid, answer })
            .await?
            .map_err(EmbeddedShimError::Refused)
    }

    /// Reports that a signal was sent to a container through its runtime. `seq` numbers such calls,
    /// from 1.
    pub async fn kill_requested(
        &self,
        container_id: &str,
        seq: u64,
        signal: u32,
        all: bool,
    ) -> Result<(), EmbeddedShimError> {
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
        self.request(|answer| ShimRequest::Requested(Box::new(request), answer)).await
    }

    /// Reports an OOM kill, once for each total. Returns when the journal has it, after 1.5 s at the
    /// latest. Where the router reads the container's counter itself, or the agent in its guest
    /// does, that counter decides.
    pub async fn oom_kill(&self, kill: OomKill) -> Result<(), EmbeddedShimError> {
        let id = ContainerId::try_from(kill.container_id);
        let id = id.map_err(|error| EmbeddedShimError::Refused(error.to_string()))?;
        if self.barriers.final_read(&self.mailbox, &id).await {
            return Ok(());
        }
        let (namespace, total) = (self.namespace.clone(), kill.total);
        let (written, acknowledged) = mpsc::channel(SIGNALS_PER_EVENT);
        let count =
            self.request(|answer| ShimRequest::OomKill { namespace, id, total, written, answer }).await?;
        let count = count.map_err(EmbeddedShimError::Refused)?;
        match written_in_time(count, acknowledged).await {
            true => Ok(()),
            false => Err(EmbeddedShimError::Stopping),
        }
    }

    /// Reports the end of a process. Returns its ruled status, for the reply to Wait, once every
    /// kill before it is delivered. TaskExit is published afterwards.
    ///
    /// Use a timeout: while containerd is away there is no ruling. After an error, or at the
    /// timeout, the real status is valid (fail open).
    pub async fn exit(&self, exit: Exit) -> Result<u32, EmbeddedShimError> {
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
        let counted = self.barriers.final_read_before_exit(&self.mailbox, &request).await;
        let request = Box::new(request);
        let id = self.request(|answer| ShimRequest::Rule { request, counted, answer }).await?;
        let id = id.map_err(EmbeddedShimError::Refused)?;
        Ok(self.barriers.holds.ruled(&id).await.status.unwrap_or(exit.status))
    }

    /// Reports that a container was deleted. Its later kills and exits are refused.
    pub async fn deleted(&self, container_id: &str) -> Result<(), EmbeddedShimError> {
        let id = container_id.to_owned();
        self.request(|answer| ShimRequest::Deleted { id, answer }).await
    }

    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> ShimRequest,
    ) -> Result<T, EmbeddedShimError> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(request(answer)).await.map_err(|_| EmbeddedShimError::Stopping)?;
        answered.await.map_err(|_| EmbeddedShimError::Stopping)
    }
}

fn unix_ns(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coroner_containerd::holds::Holds;
    use coroner_core::mode::Mode;
    use coroner_core::signal::Event;
    use coroner_transport::Address;
    use tokio::sync::watch;

    use super::*;
    use crate::ownership::Registered;
    use crate::recovered::RecoveredSource;
    use crate::settings::{Source, SourceKind};
    use crate::shim::ShimSource;
    use crate::{FinalCounters, Shutdown};

    /// Reports these kills of one container; the ids and counters of the signals that they become.
    async fn ruled(kills: &[OomKill]) -> Vec<(String, Option<u64>)> {
        let source = Source {
            name: "shim".to_owned(),
            kind: SourceKind::Shim,
            mode: Mode::Sole,
            guest: None,
            address: Address::Unix("".into()),
            machine: None,
        };
        let (envelopes, mut received) = mpsc::channel(8);
        let barriers = ExitBarriers {
            holds: Holds::default(),
            final_counters: FinalCounters::new(Registered::default()),
        };
        let recovered = RecoveredSource::default();
        let source = ShimSource::new(source, "n".to_owned(), envelopes, Arc::default(), recovered, barriers);
        let (stop, stopped) = watch::channel(false);
        let shutdown = Shutdown { stop: stopped, removed: None };
        let (shim, task) = source.embedded("k8s.io".to_owned(), shutdown);
        let reports = async {
            for kill in kills {
                shim.oom_kill(kill.clone()).await.unwrap();
            }
            shim.deleted("c").await.unwrap();
            let refused = shim.oom_kill(OomKill::new("c").total(9)).await;
            assert!(matches!(refused, Err(EmbeddedShimError::Refused(_))), "{refused:?}");
            stop.send_replace(true);
        };
        let signals = async {
            let mut signals = Vec::new();
            while let Some(envelope) = received.recv().await {
                let Event::OomKill(kill) = envelope.signal.event else { panic!("only kills are reported") };
                signals.push((envelope.signal.id, kill.added));
                // Without it the report would wait for its timeout.
                envelope.ack.done();
            }
            signals
        };
        tokio::join!(task, reports, signals).2
    }

    #[tokio::test]
    async fn kill_is_a_signal_once_for_each_total() {
        let kills = [1, 1, 3, 2].map(|total| OomKill::new("c").total(total));
        let expect = [("n::shim:c:kill-1", Some(1)), ("n::shim:c:kill-3", Some(2))];
        assert_eq!(ruled(&kills).await, expect.map(|(id, added)| (id.to_owned(), added)));
    }

    #[tokio::test]
    async fn kill_without_counter_is_announced_once() {
        let kills = [OomKill::new("c"), OomKill::new("c")];
        assert_eq!(ruled(&kills).await, [("n::shim:c:oom".to_owned(), None)]);
    }
}
