//! Who a container is: pod, namespace, name, image, from containerd's API by container id.
//!
//! The two calls it needs are written out here: a generated client would bring `protoc` into every build.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::signal::{ContainerId, Owner};

/// Names kept. Without a bound a node that runs short jobs for a year would keep the name of every one.
const CACHE: usize = 8192;
/// A name that was not found is asked for again after this long: the signal may have been early.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// A ruling waits at most this long for a name; those on other containers do not.
const PATIENCE: Duration = Duration::from_millis(250);
/// After containerd did not answer, names stay unknown for this long instead of costing each signal its patience.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// At the start, a list of all tasks may take this long.
const LISTING: Duration = Duration::from_secs(2);
/// `containerd.v1.types.Status`.
const STOPPED: i32 = 3;
/// Bytes of one answer: an OCI spec with many mounts has some ten KiB.
const MAX_ANSWER: usize = 4 << 20;

/// What containerd knows of a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The containerd namespace it was found in.
    pub containerd_namespace: Option<String>,
    /// Its pod's sandbox.
    pub sandbox_id: Option<String>,
    /// Who it is to Kubernetes.
    pub owner: Option<Owner>,
    /// Bytes, from the OCI spec.
    pub memory_limit: Option<u64>,
}

/// Looks containers up and remembers them.
#[derive(Debug)]
pub struct Identities {
    channel: Option<Channel>,
    known: HashMap<ContainerId, Arc<Identity>>,
    order: VecDeque<ContainerId>,
    unknown: HashMap<ContainerId, Instant>,
    silent_until: Option<Instant>,
    nobody: Arc<Identity>,
}

impl Identities {
    /// Of the containerd at `address`; without one everybody stays unknown.
    pub fn new(address: Option<PathBuf>) -> Self {
        Self {
            channel: address.map(connect),
            known: HashMap::new(),
            order: VecDeque::new(),
            unknown: HashMap::new(),
            silent_until: None,
            nobody: Arc::default(),
        }
    }

    /// Who this is; all unknown when containerd does not know or does not answer. Where it must be asked, the question is answered instead: whoever
    /// waits for it holds up nobody else.
    pub fn of(&mut self, id: &ContainerId) -> Result<Arc<Identity>, Question> {
        if let Some(identity) = self.known.get(id) {
            return Ok(Arc::clone(identity));
        }
        let now = Instant::now();
        let early = self.unknown.get(id).is_some_and(|until| now < *until);
        match (self.channel.clone(), early, self.silent_until.is_some_and(|until| now < until)) {
            (Some(channel), false, false) => Err(Question { channel, id: id.clone() }),
            (None, ..) | (Some(_), true, _) | (Some(_), _, true) => Ok(Arc::clone(&self.nobody)),
        }
    }

    /// Remembers what was answered, and says who it is.
    pub fn learn(&mut self, answer: Answer) -> Arc<Identity> {
        let (id, now) = (&answer.id, Instant::now());
        match answer.found {
            Ok(Some(identity)) => {
                self.silent_until = None;
                self.keep(id, Arc::new(identity))
            }
            Ok(None) => {
                self.silent_until = None;
                self.unknown.retain(|_, until| now < *until);
                if self.unknown.len() < CACHE {
                    self.unknown.insert(id.clone(), now + UNKNOWN_FOR);
                }
                Arc::clone(&self.nobody)
            }
            Err(error) => self.silent(now, &error),
        }
    }

    fn keep(&mut self, id: &ContainerId, identity: Arc<Identity>) -> Arc<Identity> {
        if self.order.len() == CACHE
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.known.insert(id.clone(), Arc::clone(&identity));
        identity
    }

    fn silent(&mut self, now: Instant, error: &str) -> Arc<Identity> {
        if self.silent_until.is_none() {
            tracing::warn!(error, "containerd tells no names; they stay unknown until it does");
        }
        self.silent_until = Some(now + SILENT_FOR);
        Arc::clone(&self.nobody)
    }
}

/// Who a container is, not yet asked.
#[derive(Debug)]
pub struct Question {
    channel: Channel,
    id: ContainerId,
}

/// What containerd said of a container.
#[derive(Debug)]
pub struct Answer {
    /// Which.
    pub id: ContainerId,
    found: Result<Option<Identity>, String>,
}

#[cfg(test)]
impl Answer {
    /// containerd does not know it.
    pub(crate) fn unknown(id: ContainerId) -> Self {
        Self { id, found: Ok(None) }
    }
}

impl Question {
    /// Asks containerd, with a bound on the time it may take.
    pub async fn ask(self) -> Answer {
        let found = match timeout(PATIENCE, look_up(self.channel, self.id.as_str())).await {
            Ok(found) => found.map_err(|status| status.message().to_owned()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        Answer { id: self.id, found }
    }
}

/// A connection that is made when it is needed.
pub(crate) fn connect(address: PathBuf) -> Channel {
    // The URI is never resolved: the connector below goes to the socket.
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let address = address.clone();
            async move { UnixStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        },
    ))
}

/// What containerd says of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// It is there, and has not ended.
    Runs,
    /// It has ended, with this status.
    Stopped(u32),
}

/// containerd's tasks in every namespace, by container id; `None` when it does not answer in time.
pub(crate) async fn tasks(address: PathBuf) -> Option<HashMap<String, TaskState>> {
    let listed = async {
        let channel = connect(address);
        let request = Request::new(ListNamespaces {});
        let namespaces: Namespaces =
            unary(channel.clone(), "/containerd.services.namespaces.v1.Namespaces/List", request).await?;
        let mut tasks = HashMap::new();
        for namespace in namespaces.namespaces {
            let request = within(ListTasks {}, &namespace.name)?;
            let answer: Tasks =
                unary(channel.clone(), "/containerd.services.tasks.v1.Tasks/List", request).await?;
            tasks.extend(answer.tasks.into_iter().map(|task| {
                let state = if task.status == STOPPED {
                    TaskState::Stopped(task.exit_status)
                } else {
                    TaskState::Runs
                };
                (task.id, state)
            }));
        }
        Ok::<_, Status>(tasks)
    };
    match timeout(LISTING, listed).await {
        Ok(Ok(tasks)) => Some(tasks),
        Ok(Err(status)) => {
            tracing::warn!(error = status.message(), "containerd does not list its tasks");
            None
        }
        Err(_) => None,
    }
}

/// Whether containerd's CRI is ready, or there is none that could be.
pub(crate) async fn cri_answers(channel: Channel) -> bool {
    let request = Request::new(CriStatus {});
    let answer: Result<CriStatus, Status> =
        unary(channel, "/runtime.v1.RuntimeService/Status", request).await;
    answer.map_or_else(|status| status.code() == Code::Unimplemented, |_| true)
}

/// What the containerd at `address` calls its version, "1.6.20" say, or why it does not say.
pub async fn version(address: PathBuf) -> Result<String, String> {
    let path = "/containerd.services.version.v1.Version/Version";
    match timeout(LISTING, unary(connect(address), path, Request::new(Empty {}))).await {
        Ok(Ok(Version { version })) => Ok(version),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn within<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let header = namespace.parse().map_err(|_| Status::invalid_argument("a namespace is no header value"))?;
    request.metadata_mut().insert("containerd-namespace", header);
    Ok(request)
}

/// In `k8s.io` first, then in every other namespace.
async fn look_up(channel: Channel, id: &str) -> Result<Option<Identity>, Status> {
    if let Some(identity) = get(channel.clone(), "k8s.io", id).await? {
        return Ok(Some(identity));
    }
    let request = Request::new(ListNamespaces {});
    let namespaces: Namespaces =
        unary(channel.clone(), "/containerd.services.namespaces.v1.Namespaces/List", request).await?;
    for namespace in namespaces.namespaces.iter().filter(|it| it.name != "k8s.io") {
        if let Some(identity) = get(channel.clone(), &namespace.name, id).await? {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

async fn get(channel: Channel, namespace: &str, id: &str) -> Result<Option<Identity>, Status> {
    let request = within(GetContainer { id: id.to_owned() }, namespace)?;
    let answer: Result<GotContainer, Status> =
        unary(channel, "/containerd.services.containers.v1.Containers/Get", request).await;
    match answer {
        Ok(answer) => Ok(answer.container.map(|container| identity(namespace, container))),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
        Err(status) => Err(status),
    }
}

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    client.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

fn identity(namespace: &str, container: Container) -> Identity {
    let label = |name: &str| container.labels.get(name).filter(|value| !value.is_empty()).cloned();
    // The spec is what a client wrote: one that does not parse leaves its facts unknown.
    let spec: Spec =
        container.spec.as_ref().and_then(|any| serde_json::from_slice(&any.value).ok()).unwrap_or_default();
    let owner = Owner {
        pod: label("io.kubernetes.pod.name"),
        namespace: label("io.kubernetes.pod.namespace"),
        pod_uid: label("io.kubernetes.pod.uid"),
        container: label("io.kubernetes.container.name"),
        init_container: None,
        image: Some(container.image.clone()).filter(|image| !image.is_empty()),
    };
    Identity {
        containerd_namespace: Some(namespace.to_owned()),
        sandbox_id: spec.annotations.get("io.kubernetes.cri.sandbox-id").cloned(),
        owner: (owner != Owner::default()).then_some(owner),
        memory_limit: spec
            .linux
            .resources
            .memory
            .limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|it| *it > 0),
    }
}

/// What is read of an OCI runtime spec.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
    linux: SpecLinux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecLinux {
    resources: SpecResources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecResources {
    memory: SpecMemory,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecMemory {
    limit: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainer {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(map = "string, string", tag = "2")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "3")]
    image: String,
    #[prost(message, optional, tag = "5")]
    spec: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ListTasks {}

#[derive(Clone, PartialEq, prost::Message)]
struct Tasks {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<Process>,
}

/// `containerd.v1.types.Process`, of a task's init.
#[derive(Clone, PartialEq, prost::Message)]
struct Process {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(int32, tag = "4")]
    status: i32,
    #[prost(uint32, tag = "9")]
    exit_status: u32,
}

/// Of CRI's status, only that it comes is looked at.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct CriStatus {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ListNamespaces {}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Version {
    #[prost(string, tag = "1")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(string, tag = "1")]
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(labels: &[(&str, &str)], image: &str, spec: &[u8]) -> Container {
        Container {
            id: "c1".to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            image: image.to_owned(),
            spec: Some(Any { type_url: String::new(), value: spec.to_vec() }),
        }
    }

    #[test]
    fn a_pod_is_read_from_labels_and_spec() {
        let spec = br#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"},
                        "linux":{"resources":{"memory":{"limit":1048576}}},"process":{"args":["x"]}}"#;
        let labels = [("io.kubernetes.pod.name", "p"), ("io.kubernetes.pod.namespace", "n")];
        let got = identity("k8s.io", container(&labels, "img:1", spec));
        assert_eq!(got.sandbox_id.as_deref(), Some("s1"));
        assert_eq!(got.memory_limit, Some(1 << 20));
        let owner = got.owner.unwrap();
        assert_eq!((owner.pod.as_deref(), owner.namespace.as_deref()), (Some("p"), Some("n")));
        assert_eq!((owner.container, owner.image.as_deref()), (None, Some("img:1")));
    }

    #[test]
    fn what_is_not_told_stays_unknown() {
        let got = identity("moby", container(&[("io.kubernetes.pod.name", "")], "", b"no json"));
        assert_eq!(got, Identity { containerd_namespace: Some("moby".to_owned()), ..Identity::default() });
    }
}
