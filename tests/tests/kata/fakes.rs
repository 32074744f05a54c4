//! Peers that are polled as kata-agents are: a good one, and one for each fault.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coroner_proto::kata::health_check_response::ServingStatus;
use coroner_proto::kata::{CheckRequest, GetOOMEventRequest, HealthCheckResponse, OOMEvent};
use coroner_proto::kata_ttrpc::{AgentService, Health, create_agent_service, create_health};
use coroner_transport::Address;
use tokio::net::UnixListener;
use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

/// What a poll is answered with.
pub(crate) enum Answer {
    /// A kill for each id that is handed in, when it is.
    Kills(Mutex<mpsc::Receiver<String>>),
    /// The same id at once, for ever.
    Always(&'static str),
    Refusal(Code, &'static str),
    /// The same, once the peer's own time for a call is up.
    LateRefusal(Code, &'static str, std::time::Duration),
}

/// The part of a kata-agent that is polled.
pub(crate) struct FakeKata {
    answer: Answer,
    polls: AtomicUsize,
}

impl FakeKata {
    pub(crate) fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self { answer, polls: AtomicUsize::new(0) })
    }

    /// How often it was polled.
    pub(crate) fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }
}

struct Service(Arc<FakeKata>);

#[async_trait]
impl AgentService for Service {
    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.0.polls.fetch_add(1, Ordering::SeqCst);
        let refused = |code, text: &str| Err(Error::RpcStatus(get_status(code, text)));
        let container_id = match &self.0.answer {
            Answer::Kills(kills) => match kills.lock().await.recv().await {
                Some(id) => id,
                None => std::future::pending().await,
            },
            Answer::Always(id) => (*id).to_owned(),
            Answer::Refusal(code, text) => return refused(*code, text),
            Answer::LateRefusal(code, text, after) => {
                tokio::time::sleep(*after).await;
                return refused(*code, text);
            }
        };
        Ok(OOMEvent { container_id, ..OOMEvent::default() })
    }
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..HealthCheckResponse::default() })
    }
}

/// Serves `kata` until the server is dropped with its runtime.
pub(crate) async fn serve(kata: &Arc<FakeKata>, socket: &Path) -> Server {
    let listener = coroner_transport::listen(&Address::Unix(socket.to_owned())).expect("the folder is ours");
    let mut services = create_agent_service(Arc::new(Service(Arc::clone(kata))));
    services.extend(create_health(Arc::new(Service(Arc::clone(kata)))));
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await.expect("the socket is bound");
    server
}

/// Takes links: holds each without a word, or ends each at once.
pub(crate) fn mute(socket: &Path, holds: bool, tasks: &mut JoinSet<()>) {
    let listener = UnixListener::bind(socket).expect("the folder is ours");
    tasks.spawn(async move {
        let mut held = Vec::new();
        while let Ok((link, _)) = listener.accept().await {
            if holds {
                held.push(link);
            }
        }
    });
}
