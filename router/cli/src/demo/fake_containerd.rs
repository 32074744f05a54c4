//! A stand-in for containerd: receives what the sink sends over the real protocol, and acknowledges
//! it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Messages that are not printed yet: a demo has two.
const MESSAGES: usize = 64;

/// The name of its sink. What the demo prints and records never names containerd as the receiver.
pub(super) const NAME: &str = "stand-in";

/// A listening event service; it ends with its runtime.
pub(super) struct FakeContainerd {
    _server: Server,
}

struct Acknowledge {
    messages: mpsc::Sender<String>,
}

#[async_trait]
impl Events for Acknowledge {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        // A full channel costs a line on the screen, never the acknowledgement.
        self.messages.try_send(text(&request)).ok();
        Ok(Empty::new())
    }
}

impl FakeContainerd {
    /// Listens on `socket`; every message is sent as text before it is acknowledged.
    pub(super) async fn start(socket: &Path) -> Result<(Self, mpsc::Receiver<String>), String> {
        let (messages, received) = mpsc::channel(MESSAGES);
        let address = format!("unix://{}", socket.display());
        let services = create_events(Arc::new(Acknowledge { messages }));
        let mut server =
            Server::new().bind(&address).map_err(|error| error.to_string())?.register_service(services);
        server.start().await.map_err(|error| error.to_string())?;
        Ok((Self { _server: server }, received))
    }
}

/// The message as it went over the wire.
fn text(request: &ForwardRequest) -> String {
    let envelope = &request.envelope;
    let event = match envelope.event.type_url.as_str() {
        "containerd.events.TaskOOM" => TaskOOM::parse_from_bytes(&envelope.event.value)
            .map(|it| format!("TaskOOM{{container_id: {:?}}}", it.container_id)),
        "containerd.events.TaskExit" => TaskExit::parse_from_bytes(&envelope.event.value).map(|it| {
            let TaskExit { container_id, id, pid, exit_status, .. } = it;
            format!("TaskExit{{container_id: {container_id:?}, id: {id:?}, pid: {pid}, exit_status: {exit_status}}}")
        }),
        other => Ok(other.to_owned()),
    };
    let event = event.unwrap_or_else(|error| error.to_string());
    format!("{} in namespace {}: {event}", envelope.topic, envelope.namespace)
}
