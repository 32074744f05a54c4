//! A containerd that accepts everything, unless it is set to refuse, and shows what it has of each
//! container.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::watch;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

/// What comes at all comes within this, on a machine that is busy too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was published of one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Of {
    pub(crate) ooms: u64,
    /// When each exit was, in unix milliseconds.
    pub(crate) exits: Vec<u64>,
}

type All = HashMap<String, Of>;

/// What was published.
pub(crate) struct Published {
    all: watch::Receiver<All>,
    refuses: Arc<AtomicBool>,
    _server: Server,
}

struct Service {
    all: watch::Sender<All>,
    refuses: Arc<AtomicBool>,
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Error::RpcStatus(get_status(Code::UNAVAILABLE, "not now")));
        }
        let envelope = request.envelope.into_option().expect("a forward carries an envelope");
        let bytes = &envelope.event.value;
        self.all.send_modify(|all| {
            if envelope.topic == "/tasks/oom" {
                let oom = TaskOOM::parse_from_bytes(bytes).expect("the type of the topic");
                all.entry(oom.container_id).or_default().ooms += 1;
            } else {
                let exit = TaskExit::parse_from_bytes(bytes).expect("the type of the topic");
                let at = exit.exited_at.seconds * 1000 + i64::from(exit.exited_at.nanos) / 1_000_000;
                let at = u64::try_from(at).expect("after 1970");
                all.entry(exit.container_id).or_default().exits.push(at);
            }
        });
        Ok(Empty::new())
    }
}

impl Published {
    pub(crate) async fn serve(socket: &Path) -> Self {
        let (sender, all) = watch::channel(All::new());
        let refuses = Arc::new(AtomicBool::new(false));
        let service = Service { all: sender, refuses: Arc::clone(&refuses) };
        let services = create_events(Arc::new(service));
        let address = format!("unix://{}", socket.display());
        let mut server = Server::new().bind(&address).unwrap().register_service(services);
        server.start().await.unwrap();
        Self { all, refuses, _server: server }
    }

    /// Whether it refuses all from now on.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// What there is of a container so far.
    pub(crate) fn of(&self, container: &str) -> Of {
        self.all.borrow().get(container).cloned().unwrap_or_default()
    }

    /// Waits until what there is of a container is as `wanted`.
    pub(crate) async fn wait(&mut self, container: &str, wanted: impl Fn(&Of) -> bool) -> Of {
        let is = |all: &All| all.get(container).is_some_and(&wanted);
        let all = tokio::time::timeout(PATIENCE, self.all.wait_for(is)).await;
        all.unwrap_or_else(|_| panic!("nothing more of {container} came")).unwrap()[container].clone()
    }
}
