//! The source's socket: containerd's Events/Forward for shims, and the requests of their proxies.

use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim_async::Events;
use coroner_proto::shim::{
    HelloRequest, HelloResponse, ReleasedRequest, ReleasedResponse, RequestedRequest, RequestedResponse,
    RuleRequest, RuleResponse,
};
use coroner_proto::shim_ttrpc::Shim;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, get_status};

use super::super::final_count::FinalCounters;
use super::event::ShimEvent;
use coroner_containerd::holds::Holds;
use coroner_core::mode::Mode;
use coroner_core::signal::ContainerId;

/// Timeout for the write to the journal. A shim waits 5 s for an answer and then retries the event,
/// after later ones: the write must end long before that.
const WRITTEN_WITHIN: Duration = Duration::from_millis(1500);
/// Timeout for a ruling. A proxy holds a reply for at most 5 s: a later answer is of no use.
const RULED_WITHIN: Duration = Duration::from_secs(6);
/// Most signals of one event. The two known ones are a kill and an exit.
pub(super) const SIGNALS_PER_EVENT: usize = 4;

/// A request to the source's task.
#[derive(Debug)]
pub(super) enum ShimRequest {
    /// Queries where a container's kills are counted. It goes through the mailbox and not through
    /// a shared map: the creation of the container may wait there, and must be handled first.
    Counter(ContainerId, oneshot::Sender<Counter>),
    /// A shim's event. The answer is the number of signals it became; `written` receives one
    /// message for each, once it is in the journal. `counted`: a guest's agent counts its kills.
    Forward {
        event: Box<ShimEvent>,
        counted: bool,
        written: mpsc::Sender<u64>,
        answer: oneshot::Sender<usize>,
    },
    /// A process has ended. The answer is the id of its signal.
    Rule { request: Box<RuleRequest>, counted: bool, answer: oneshot::Sender<Result<String, String>> },
    /// A container of an embedding shim was created. The answer is an error if its id is invalid.
    Created {
        namespace: String,
        id: String,
        bundle: String,
        pid: Option<u32>,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// An OOM kill of an embedding shim's container. The answer is the number of signals it became,
    /// or why it was refused; `written` receives one message for each signal.
    OomKill {
        namespace: String,
        id: ContainerId,
        total: Option<u64>,
        written: mpsc::Sender<u64>,
        answer: oneshot::Sender<Result<usize, String>>,
    },
    /// A container of an embedding shim was deleted.
    Deleted { id: String, answer: oneshot::Sender<()> },
    /// Kill requests.
    Requested(Box<RequestedRequest>, oneshot::Sender<()>),
    /// A status was released, but its hold has no id or is unknown.
    Released(Box<ReleasedRequest>, oneshot::Sender<Result<(), String>>),
}

/// The place where a container's kills are counted.
#[derive(Debug)]
pub(super) enum Counter {
    /// In its cgroup on this node.
    Here,
    /// In a guest, if at all; with the container's sandbox.
    Guest(Option<String>),
}

/// The barriers that an exit passes before it is ruled on and published.
#[derive(Clone, Debug)]
pub struct ExitBarriers {
    /// The exit barrier of held exits.
    pub holds: Holds,
    /// The final counter reads of guests' agents.
    pub final_counters: FinalCounters,
}

impl ExitBarriers {
    /// Requests the final counter read, so that a kill in a container's guest is reported before
    /// its exit. True: the guest's agent counts the container's kills.
    pub(super) async fn final_read(&self, mailbox: &mpsc::Sender<ShimRequest>, id: &ContainerId) -> bool {
        if self.final_counters.is_empty() {
            return false;
        }
        let (answer, answered) = oneshot::channel();
        // If the source has ended, the next request fails.
        mailbox.send(ShimRequest::Counter(id.clone(), answer)).await.unwrap_or_default();
        match answered.await {
            Ok(Counter::Guest(sandbox)) => self.final_counters.read_final(id, sandbox.as_deref()).await,
            Ok(Counter::Here) | Err(_) => false,
        }
    }

    /// Requests the final counter read if the request is about a container's init.
    pub(super) async fn final_read_before_exit(
        &self,
        mailbox: &mpsc::Sender<ShimRequest>,
        request: &RuleRequest,
    ) -> bool {
        let process = request.process.clone().unwrap_or_default();
        match ContainerId::try_from(process.container_id) {
            Ok(id) if process.exec_id.is_empty() => self.final_read(mailbox, &id).await,
            _ => false,
        }
    }
}

/// The ttrpc services of the source's socket.
#[derive(Clone, Debug)]
pub(super) struct ShimService {
    pub(super) mode: Mode,
    pub(super) mailbox: mpsc::Sender<ShimRequest>,
    pub(super) barriers: ExitBarriers,
}

impl ShimService {
    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> ShimRequest) -> ttrpc::Result<T> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(request(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }

    fn proxied(&self) -> ttrpc::Result<()> {
        if self.mode == Mode::Proxy {
            return Ok(());
        }
        let message = "this source is in mode \"wrapped\": a proxy needs one in mode \"proxy\"";
        Err(Error::RpcStatus(get_status(Code::FAILED_PRECONDITION, message)))
    }
}

/// Waits until this many signals are written. False: the router stopped before.
pub(super) async fn written_in_time(count: usize, mut acknowledged: mpsc::Receiver<u64>) -> bool {
    let all = async {
        for _ in 0..count {
            acknowledged.recv().await?;
        }
        Some(())
    };
    match timeout(WRITTEN_WITHIN, all).await {
        // After the timeout the signals are under way: sent again they would arrive twice.
        Ok(Some(())) | Err(_) => true,
        Ok(None) => false,
    }
}

fn stopping() -> Error {
    Error::RpcStatus(get_status(Code::UNAVAILABLE, "the router is stopping"))
}

fn refused(message: String) -> Error {
    Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, message))
}

#[async_trait]
impl Events for ShimService {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.into_option().unwrap_or_default();
        let event = ShimEvent::read(envelope).map_err(|error| {
            tracing::warn!(%error, "shim event refused");
            refused(error.to_string())
        })?;
        let counted = event.reports_end() && self.barriers.final_read(&self.mailbox, &event.container).await;
        let (written, acknowledged) = mpsc::channel(SIGNALS_PER_EVENT);
        let event = Box::new(event);
        let count = self.request(|answer| ShimRequest::Forward { event, counted, written, answer }).await?;
        match written_in_time(count, acknowledged).await {
            true => Ok(Empty::default()),
            false => Err(stopping()),
        }
    }
}

#[async_trait]
impl Shim for ShimService {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let mode = if self.mode == Mode::Proxy { "proxy" } else { "wrapped" };
        Ok(HelloResponse {
            router_version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: mode.to_owned(),
            ..HelloResponse::default()
        })
    }

    async fn rule(&self, _: &TtrpcContext, request: RuleRequest) -> ttrpc::Result<RuleResponse> {
        self.proxied()?;
        let status = request.status;
        let counted = self.barriers.final_read_before_exit(&self.mailbox, &request).await;
        let request = Box::new(request);
        let id =
            self.request(|answer| ShimRequest::Rule { request, counted, answer }).await?.map_err(refused)?;
        match timeout(RULED_WITHIN, self.barriers.holds.ruled(&id)).await {
            Ok(ruled) => Ok(RuleResponse {
                status: ruled.status.unwrap_or(status),
                oom: ruled.oom,
                ..RuleResponse::default()
            }),
            Err(_) => Err(Error::RpcStatus(get_status(Code::DEADLINE_EXCEEDED, "not ruled in time"))),
        }
    }

    async fn released(&self, _: &TtrpcContext, request: ReleasedRequest) -> ttrpc::Result<ReleasedResponse> {
        self.proxied()?;
        if request.expired {
            let process = request.process.clone().unwrap_or_default();
            tracing::warn!(
                container = process.container_id,
                exec = process.exec_id,
                status = request.status,
                "hold ended without a ruling: the shim's own status was returned"
            );
        }
        let is_known =
            !request.hold_id.is_empty() && self.barriers.holds.release(&request.hold_id, request.status);
        if !is_known {
            self.request(|answer| ShimRequest::Released(Box::new(request), answer))
                .await?
                .map_err(refused)?;
        }
        Ok(ReleasedResponse::default())
    }

    async fn requested(
        &self,
        _: &TtrpcContext,
        request: RequestedRequest,
    ) -> ttrpc::Result<RequestedResponse> {
        self.proxied()?;
        self.request(|answer| ShimRequest::Requested(Box::new(request), answer)).await?;
        Ok(RequestedResponse::default())
    }
}
