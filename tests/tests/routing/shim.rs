//! A wrapped shim and its proxy, played by a client of the router's socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskOOM, TaskStart};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use coroner_proto::shim::{KillRequest, Process, ReleasedRequest, RuleRequest};
use coroner_proto::shim_ttrpc::ShimClient;
use coroner_transport::Address;
use serde_json::json;
use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_duration};

/// Long enough for any answer of a router that is not held up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shim, and its proxy.
pub(crate) struct Shim {
    events: EventsClient,
    proxy: ShimClient,
    /// Its containers' init.
    pub(crate) pid: u32,
}

impl Shim {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let address = Address::Unix(socket.to_owned());
        let dial = async {
            loop {
                match coroner_transport::connect(&address).await {
                    Ok(socket) => break socket,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let socket = tokio::time::timeout(PATIENCE, dial).await.expect("the router listens within a minute");
        let client = Client::new(socket);
        Self { events: EventsClient::new(client.clone()), proxy: ShimClient::new(client), pid: 7 }
    }

    async fn forward(&self, topic: &str, name: &str, message: &impl Message) {
        let event = Any {
            type_url: format!("containerd.events.{name}"),
            value: message.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let envelope = Envelope {
            namespace: "k8s.io".to_owned(),
            topic: topic.to_owned(),
            timestamp: MessageField::some(Timestamp { seconds: 1, ..Timestamp::default() }),
            event: MessageField::some(event),
            ..Envelope::default()
        };
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        self.events.forward(context(), &request).await.unwrap();
    }

    /// Creates and starts a container in the sandbox `s`, or in the one that its bundle names.
    pub(crate) async fn begin(&self, bundle: &Path, container: &str) {
        if !bundle.exists() {
            std::fs::create_dir_all(bundle).unwrap();
            let annotations =
                json!({"io.kubernetes.cri.sandbox-name": "p", "io.kubernetes.cri.sandbox-id": "s"});
            let spec = json!({ "annotations": annotations });
            std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        }
        let create = TaskCreate {
            container_id: container.to_owned(),
            bundle: bundle.display().to_string(),
            pid: self.pid,
            ..TaskCreate::default()
        };
        self.forward("/tasks/create", "TaskCreate", &create).await;
        let start = TaskStart { container_id: container.to_owned(), pid: self.pid, ..TaskStart::default() };
        self.forward("/tasks/start", "TaskStart", &start).await;
    }

    pub(crate) async fn oom(&self, container: &str) {
        let oom = TaskOOM { container_id: container.to_owned(), ..TaskOOM::default() };
        self.forward("/tasks/oom", "TaskOOM", &oom).await;
    }

    pub(crate) async fn exit(&self, container: &str, status: u32) {
        let exit = TaskExit {
            container_id: container.to_owned(),
            id: container.to_owned(),
            pid: self.pid,
            exit_status: status,
            exited_at: MessageField::some(Timestamp { seconds: 5, nanos: 6_000_007, ..Timestamp::default() }),
            ..TaskExit::default()
        };
        self.forward("/tasks/exit", "TaskExit", &exit).await;
    }

    pub(crate) async fn delete(&self, container: &str) {
        let delete =
            TaskDelete { container_id: container.to_owned(), pid: self.pid, ..TaskDelete::default() };
        self.forward("/tasks/delete", "TaskDelete", &delete).await;
    }

    pub(crate) async fn rule(
        &self,
        container: &str,
        status: u32,
        requests: Vec<KillRequest>,
    ) -> ttrpc::Result<u32> {
        let request = RuleRequest {
            namespace: "k8s.io".to_owned(),
            process: MessageField::some(process(container)),
            status,
            requests,
            ..RuleRequest::default()
        };
        Ok(self.proxy.rule(context(), &request).await?.status)
    }

    pub(crate) async fn release(&self, container: &str, status: u32) {
        let request = ReleasedRequest {
            namespace: "k8s.io".to_owned(),
            process: MessageField::some(process(container)),
            status,
            ..ReleasedRequest::default()
        };
        self.proxy.released(context(), &request).await.unwrap();
    }
}

fn context() -> Context {
    with_duration(PATIENCE)
}

fn process(container: &str) -> Process {
    Process { container_id: container.to_owned(), ..Process::default() }
}
