//! A reader of an agent: the protocol itself, without a router.

use std::time::Duration;

use coroner_proto::agent::{
    CauseKind, HelloRequest, HelloResponse, NextSignalsRequest, Pressure, Signal, SnapshotRequest,
    WatchRequest, signal::Event,
};
use coroner_proto::agent_ttrpc::AgentClient;
use coroner_tests::wait::until;
use ttrpc::asynchronous::Client;
use ttrpc::context;

/// A guest without KVM, on a machine that may be compiling.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Reader {
    pub(crate) client: AgentClient,
    pub(crate) hello: HelloResponse,
    pub(crate) signals: Vec<Signal>,
    after: u64,
}

/// How a container ended: its status, its signal, why something is not known.
pub(crate) type End = (Option<u32>, Option<u32>, String);

impl Reader {
    pub(crate) async fn connect(address: &str) -> Self {
        let address = address.parse().unwrap();
        let socket = until("the agent to listen", PATIENCE, async || {
            Ok(coroner_transport::connect(&address).await.ok())
        });
        let client = AgentClient::new(Client::new(socket.await.unwrap()));
        let hello = client.hello(context::with_duration(PATIENCE), &HelloRequest::default()).await.unwrap();
        Self { client, hello, signals: Vec::new(), after: 0 }
    }

    /// Reads and acknowledges until `enough`.
    pub(crate) async fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !enough(self) {
            assert!(begun.elapsed() < 2 * PATIENCE, "timeout waiting for {what}: {:?}", self.of(what));
            self.read(200).await;
        }
    }

    /// Reads once, and acknowledges what was read before.
    pub(crate) async fn read(&mut self, wait_ms: u32) {
        let request = NextSignalsRequest {
            stream_id: self.hello.stream_id.clone(),
            after_seq: self.after,
            ack_seq: self.after,
            wait_ms,
            ..NextSignalsRequest::default()
        };
        let answer = self.client.next_signals(context::with_duration(PATIENCE * 10), &request).await.unwrap();
        assert_eq!(answer.lost, 0, "nothing is lost while it is read");
        self.after = answer.signals.last().map_or(self.after, |last| last.seq);
        self.signals.extend(answer.signals);
    }

    /// Waits until the agent follows a container, and its init.
    pub(crate) async fn knows(&self, id: &str, init: bool) {
        until("the agent to know a container", PATIENCE, async || {
            let mut request = SnapshotRequest::default();
            loop {
                let page = self.client.snapshot(context::with_duration(PATIENCE), &request).await?;
                if let Some(there) = page.containers.iter().find(|it| it.id == id) {
                    return Ok((there.init_pid.is_some() || !init).then_some(()));
                }
                let Some(last) = page.containers.last().filter(|_| page.more) else { return Ok(None) };
                request.after_container_id = last.id.clone();
            }
        })
        .await
        .unwrap();
    }

    /// Names a container's init.
    pub(crate) async fn watch(&self, id: &str, cgroup: &str, pid: u32) {
        let request = WatchRequest {
            container_id: id.to_owned(),
            cgroup: cgroup.to_owned(),
            init_pid: Some(pid),
            ..WatchRequest::default()
        };
        self.client.watch(context::with_duration(PATIENCE), &request).await.unwrap();
    }

    pub(crate) fn of(&self, id: &str) -> Vec<&Signal> {
        self.signals.iter().filter(|signal| signal.container_id == id).collect()
    }

    /// How a container ended, if that was reported. Two reports of one end are an error.
    pub(crate) fn end(&self, id: &str) -> Option<End> {
        let mut ends = self.of(id).into_iter().filter_map(|signal| match &signal.event {
            Some(Event::Exited(exited)) if signal.exec_id.is_none() => {
                Some((exited.status, exited.signal, exited.unknown_because.clone()))
            }
            _ => None,
        });
        let end = ends.next();
        assert_eq!(ends.next(), None, "{id} ended twice");
        end
    }

    /// What ended a container by a signal, if that was stated.
    pub(crate) fn cause(&self, id: &str) -> Option<CauseKind> {
        let cause = self.of(id).into_iter().find_map(|signal| match &signal.event {
            Some(Event::Exited(exited)) => exited.cause.as_ref(),
            _ => None,
        })?;
        Some(cause.kind.enum_value().unwrap()).filter(|kind| *kind != CauseKind::CAUSE_UNKNOWN)
    }

    /// The kill counter of a container as last reported: 0 without a kill.
    pub(crate) fn kills(&self, id: &str) -> u64 {
        let total = |signal: &&Signal| match &signal.event {
            Some(Event::OomKill(kill)) => Some(kill.total),
            _ => None,
        };
        self.of(id).iter().rev().find_map(total).unwrap_or(0)
    }

    pub(crate) fn pressure(&self, id: &str) -> Vec<(u64, Pressure)> {
        let of = |signal: &Signal| match &signal.event {
            Some(Event::Pressure(pressure)) => Some((signal.seq, pressure.clone())),
            _ => None,
        };
        self.of(id).into_iter().filter_map(of).collect()
    }
}
