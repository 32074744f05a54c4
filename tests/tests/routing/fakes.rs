//! An agent and a containerd over the real protocols, which misbehave on demand: beside the suites
//! with real ones.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use coroner_proto::agent::{
    HelloRequest, HelloResponse, NextSignalsRequest, NextSignalsResponse, SettleRequest, SettleResponse,
    Signal, SnapshotRequest, SnapshotResponse,
};
use coroner_proto::agent_ttrpc::{Agent, create_agent};
use coroner_transport::Address;
use tokio::sync::{Notify, mpsc};
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

/// Why the locks here can be taken.
const UNPOISONED: &str = "nothing panics under this lock";

/// An agent that emits the signals it is given.
#[derive(Default)]
pub(crate) struct FakeAgent {
    pub(crate) signals: Mutex<Vec<Signal>>,
    pub(crate) changed: Notify,
    pub(crate) hellos: AtomicUsize,
    /// The router's cursors: what it has read, and what it has dealt with.
    pub(crate) read: Mutex<u64>,
    pub(crate) acked: Mutex<u64>,
    pub(crate) lost: Mutex<u64>,
    pub(crate) snapshot: Mutex<Option<SnapshotResponse>>,
    /// What a final read of any counter shows; none: it has no such call.
    pub(crate) counter: Mutex<Option<u64>>,
    /// A signal that the read finds, and that is emitted a moment after its answer.
    pub(crate) found: Mutex<Option<Signal>>,
    /// The sequence number that it promises, and never emits.
    pub(crate) promised: AtomicU64,
    /// Settle is never answered.
    pub(crate) silent: AtomicBool,
}

impl FakeAgent {
    pub(crate) fn emit(&self, signal: Signal) {
        self.signals.lock().expect(UNPOISONED).push(signal);
        self.changed.notify_waiters();
    }

    /// Waits until the router has acknowledged up to `seq`.
    pub(crate) async fn acked(&self, seq: u64) {
        self.reached(&self.acked, seq).await;
    }

    /// Waits until the router has read up to `seq` and requests more.
    pub(crate) async fn read(&self, seq: u64) {
        self.reached(&self.read, seq).await;
    }

    async fn reached(&self, cursor: &Mutex<u64>, seq: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if *cursor.lock().expect(UNPOISONED) >= seq {
                return;
            }
            tokio::time::timeout(PATIENCE, changed).await.expect("the router reads on within a minute");
        }
    }
}

pub(crate) struct Service(pub(crate) Arc<FakeAgent>);

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        self.0.hellos.fetch_add(1, Ordering::SeqCst);
        Ok(HelloResponse {
            stream_id: "fake".to_owned(),
            capabilities: vec!["kill-count".to_owned(), "exit-status".to_owned()],
            ..HelloResponse::default()
        })
    }

    async fn next_signals(
        &self,
        _: &TtrpcContext,
        request: NextSignalsRequest,
    ) -> ttrpc::Result<NextSignalsResponse> {
        {
            let mut acked = self.0.acked.lock().expect(UNPOISONED);
            *acked = request.ack_seq.max(*acked);
            if request.after_seq < u64::MAX {
                *self.0.read.lock().expect(UNPOISONED) = request.after_seq;
            }
        }
        self.0.changed.notify_waiters();
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let newer = |it: &&Signal| it.seq > request.after_seq;
            let most = request.max as usize;
            let signals: Vec<Signal> =
                self.0.signals.lock().expect(UNPOISONED).iter().filter(newer).take(most).cloned().collect();
            let lost = std::mem::take(&mut *self.0.lost.lock().expect(UNPOISONED));
            if !signals.is_empty() || lost > 0 || request.wait_ms == 0 {
                return Ok(NextSignalsResponse {
                    stream_id: "fake".to_owned(),
                    signals,
                    lost,
                    ..NextSignalsResponse::default()
                });
            }
            changed.await;
        }
    }

    async fn settle(&self, _: &TtrpcContext, _: SettleRequest) -> ttrpc::Result<SettleResponse> {
        if self.0.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let Some(total) = *self.0.counter.lock().expect(UNPOISONED) else {
            return Err(Error::RpcStatus(get_status(Code::UNIMPLEMENTED, "no final read here")));
        };
        let found = self.0.found.lock().expect(UNPOISONED).take();
        let promised = self.0.promised.load(Ordering::SeqCst);
        let seq = found.as_ref().map_or(promised, |signal| signal.seq);
        if let Some(signal) = found {
            let agent = Arc::clone(&self.0);
            #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                agent.emit(signal);
            });
        }
        Ok(SettleResponse { seq, kills_total: Some(total), ..SettleResponse::default() })
    }

    async fn snapshot(&self, _: &TtrpcContext, _: SnapshotRequest) -> ttrpc::Result<SnapshotResponse> {
        let snapshot = self.0.snapshot.lock().expect(UNPOISONED).clone();
        snapshot.ok_or_else(|| Error::RpcStatus(get_status(Code::UNIMPLEMENTED, "no snapshots here")))
    }
}

/// Serves `agent` on a unix socket until the server is dropped with its runtime.
pub(crate) async fn serve(agent: &Arc<FakeAgent>, socket: &Path) -> Server {
    let listener = coroner_transport::listen(&Address::Unix(socket.to_owned())).expect("the folder is ours");
    let services = create_agent(Arc::new(Service(Arc::clone(agent))));
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await.expect("the socket is bound");
    server
}

/// An event service that refuses as often as it is set to, and passes on what it accepted.
pub(crate) struct FakeContainerd {
    refusals: AtomicUsize,
    took: mpsc::UnboundedSender<Event>,
}

/// What comes within this comes; after it a test fails instead of holding up every one behind it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a [`FakeContainerd`] took, in order.
pub(crate) struct Took(mpsc::UnboundedReceiver<Event>);

impl Took {
    /// The next event.
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        tokio::time::timeout(PATIENCE, self.0.recv()).await.expect("an event within a minute")
    }
}

/// What a containerd would have published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Oom { namespace: String, container: String },
    Exit { container: String, id: String, pid: u32, status: u32 },
    Other { topic: String },
}

#[async_trait]
impl Events for FakeContainerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let refused =
            self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Err(Error::RpcStatus(get_status(Code::UNAVAILABLE, "not now")));
        }
        let envelope = request.envelope.into_option().expect("a forward carries an envelope");
        let bytes = &envelope.event.value;
        let event = if envelope.topic == "/tasks/oom" {
            let container = TaskOOM::parse_from_bytes(bytes).expect("the type of the topic").container_id;
            Event::Oom { namespace: envelope.namespace, container }
        } else if envelope.topic != "/tasks/exit" {
            Event::Other { topic: envelope.topic }
        } else {
            let exit = TaskExit::parse_from_bytes(bytes).expect("the type of the topic");
            Event::Exit { container: exit.container_id, id: exit.id, pid: exit.pid, status: exit.exit_status }
        };
        self.took.send(event).ok();
        Ok(Empty::new())
    }
}

impl FakeContainerd {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test reads every event; what it makes is bounded by itself"
    )]
    pub(crate) async fn serve(socket: &Path, refusals: usize) -> (Server, Took) {
        let (took, events) = mpsc::unbounded_channel();
        let service = Self { refusals: AtomicUsize::new(refusals), took };
        let address = format!("unix://{}", socket.display());
        let services = create_events(Arc::new(service));
        let mut server = Server::new().bind(&address).expect("the folder is ours").register_service(services);
        server.start().await.expect("the socket is bound");
        (server, Took(events))
    }
}
