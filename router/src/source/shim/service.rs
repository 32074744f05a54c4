//! The source's socket: containerd's Events/Forward for shims, and what their proxies ask.

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

use super::super::settlers::Settlers;
use super::event::Told;
use crate::config::Mode;
use crate::holds::Holds;
use crate::signal::ContainerId;

/// A shim waits 5 s for an answer, then tells the event again, behind what came after it: whoever writes the journal must be done with long before.
const WRITTEN_WITHIN: Duration = Duration::from_millis(1500);
/// A proxy holds for at most 5 s: nobody waits for a later answer.
const RULED_WITHIN: Duration = Duration::from_secs(6);
/// Signals that one event becomes: a kill and an exit.
pub(super) const ARRIVALS: usize = 4;

/// What the source is asked.
#[derive(Debug)]
pub(super) enum Ask {
    /// Where a container's kills are counted.
    Counter(ContainerId, oneshot::Sender<Counter>),
    /// A shim's event; answered with how many signals it became, each of which `written` hears of. `counted`: a guest's agent counts its kills.
    Forward { told: Box<Told>, counted: bool, written: mpsc::Sender<u64>, answer: oneshot::Sender<usize> },
    /// A process has ended; answered with its signal's id.
    Rule { request: Box<RuleRequest>, counted: bool, answer: oneshot::Sender<Result<String, String>> },
    /// An embedding shim's container; answered with what is wrong with its id.
    Created {
        namespace: String,
        id: String,
        bundle: String,
        pid: Option<u32>,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// It is gone.
    Deleted { id: String, answer: oneshot::Sender<()> },
    /// Kill requests.
    Requested(Box<RequestedRequest>, oneshot::Sender<()>),
    /// What was released; answered with the signal's id.
    Released(Box<ReleasedRequest>, oneshot::Sender<Result<String, String>>),
}

/// Where a container's kills are counted.
#[derive(Debug)]
pub(super) enum Counter {
    /// In its cgroup on this node.
    Here,
    /// In a guest, if anywhere; of this sandbox.
    Guest(Option<String>),
}

/// Whom a shim's source asks beside itself.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Exits that somebody waits for.
    pub holds: Holds,
    /// Agents of guests.
    pub settlers: Settlers,
}

impl Asked {
    /// The exit barrier: a kill that a container's guest knows of is handed on before what is asked next. Whether its agent counts them.
    pub(super) async fn settle(&self, asks: &mpsc::Sender<Ask>, id: &ContainerId) -> bool {
        if self.settlers.is_empty() {
            return false;
        }
        let (answer, answered) = oneshot::channel();
        // A source that has ended says so at what comes next.
        asks.send(Ask::Counter(id.clone(), answer)).await.unwrap_or_default();
        match answered.await {
            Ok(Counter::Guest(sandbox)) => self.settlers.settle(id, sandbox.as_deref()).await,
            Ok(Counter::Here) | Err(_) => false,
        }
    }

    /// The same before the end of a container's init.
    pub(super) async fn settle_before(&self, asks: &mpsc::Sender<Ask>, request: &RuleRequest) -> bool {
        let process = request.process.clone().unwrap_or_default();
        match ContainerId::try_from(process.container_id) {
            Ok(id) if process.exec_id.is_empty() => self.settle(asks, &id).await,
            _ => false,
        }
    }
}

/// Answers.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) mode: Mode,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) asked: Asked,
}

impl Service {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> ttrpc::Result<T> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| stopping())?;
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

fn stopping() -> Error {
    Error::RpcStatus(get_status(Code::UNAVAILABLE, "the router is stopping"))
}

fn refused(message: String) -> Error {
    Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, message))
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.into_option().unwrap_or_default();
        let told = Told::read(envelope).map_err(|error| {
            tracing::warn!(%error, "a shim's event is refused");
            refused(error.to_string())
        })?;
        let counted = told.tells_of_an_end() && self.asked.settle(&self.asks, &told.container).await;
        let (written, mut heard) = mpsc::channel(ARRIVALS);
        let told = Box::new(told);
        let count = self.ask(|answer| Ask::Forward { told, counted, written, answer }).await?;
        let all = async {
            for _ in 0..count {
                heard.recv().await?;
            }
            Some(())
        };
        match timeout(WRITTEN_WITHIN, all).await {
            // Not written in time, it is under way all the same: told again it would only come twice.
            Ok(Some(())) | Err(_) => Ok(Empty::default()),
            Ok(None) => Err(stopping()),
        }
    }
}

#[async_trait]
impl Shim for Service {
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
        let counted = self.asked.settle_before(&self.asks, &request).await;
        let request = Box::new(request);
        let id = self.ask(|answer| Ask::Rule { request, counted, answer }).await?.map_err(refused)?;
        match timeout(RULED_WITHIN, self.asked.holds.ruled(&id)).await {
            Ok(ruled) => Ok(RuleResponse { status: ruled.unwrap_or(status), ..RuleResponse::default() }),
            Err(_) => Err(Error::RpcStatus(get_status(Code::DEADLINE_EXCEEDED, "not ruled in time"))),
        }
    }

    async fn released(&self, _: &TtrpcContext, request: ReleasedRequest) -> ttrpc::Result<ReleasedResponse> {
        self.proxied()?;
        let status = request.status;
        let id = self.ask(|answer| Ask::Released(Box::new(request), answer)).await?.map_err(refused)?;
        self.asked.holds.release(&id, status);
        Ok(ReleasedResponse::default())
    }

    async fn requested(
        &self,
        _: &TtrpcContext,
        request: RequestedRequest,
    ) -> ttrpc::Result<RequestedResponse> {
        self.proxied()?;
        self.ask(|answer| Ask::Requested(Box::new(request), answer)).await?;
        Ok(RequestedResponse::default())
    }
}
