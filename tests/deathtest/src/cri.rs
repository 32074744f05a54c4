//! The calls of CRI that a run needs, with the requests that a kubelet sends.

use std::collections::HashMap;
use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api, CgroupDriver, ContainerState, NamespaceMode};
use rustix::process::Pid;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::case::Case;
use crate::node::Driver;
use crate::verdict::Reading;

/// The pod namespace of every pod, and the start of their names.
const NAMESPACE: &str = "deathtest";
/// The label of all pods of a run, by which they are found at its end.
const RUN_LABEL: &str = "deathtest.coroner/run";
/// A runtime answers in milliseconds; this allows for a machine under load.
const ANSWER: Duration = Duration::from_secs(10);
/// Any call: an image has to be pulled in this time.
const CALL: Duration = Duration::from_secs(300);
/// A runtime that is restarted during a run is waited for: this allows for a machine under load.
const RESTARTED: Duration = Duration::from_secs(60);
/// Restarts of the runtime before one pod or container has started.
pub(crate) const MOST_RESTARTS: u32 = 10;
/// Between two calls to a runtime that does not answer.
const RETRY: Duration = Duration::from_millis(200);
/// containerd's CRI learns of an image that was just imported a few milliseconds later.
const IMPORTED: Duration = Duration::from_secs(1);

/// The runtime has ended, or is starting.
#[derive(Debug, thiserror::Error)]
#[error("the runtime does not answer: check that it runs: {0}")]
pub(crate) struct Unavailable(String);

/// A connection to a CRI runtime.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a pod is made of.
#[derive(Debug)]
pub(crate) struct PodSpec<'a> {
    pub(crate) run: &'a str,
    /// The runtime handler; an empty one is the runtime's default.
    pub(crate) handler: &'a str,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) cgroup: String,
    /// A folder for the logs of its containers.
    pub(crate) logs: &'a Path,
}

/// A running pod on the host's network.
#[derive(Debug)]
pub(crate) struct Pod {
    id: String,
    config: api::PodSandboxConfig,
}

impl Pod {
    /// Whether the container with this name has printed the line `ready`.
    pub(crate) fn has_printed_ready(&self, name: &str) -> bool {
        let log = Path::new(&self.config.log_directory).join(log_file(name));
        fs::read_to_string(log).is_ok_and(|log| log.lines().any(|line| line.ends_with(" ready")))
    }
}

/// What CRI shows of a container.
#[derive(Debug)]
pub(crate) struct Status {
    /// Its end; none while it has not ended.
    pub(crate) ended: Option<Reading>,
    /// Its first process, as the host numbers it, in a verbose status of a container that runs.
    pub(crate) init: Option<Pid>,
}

impl Cri {
    /// Dials a runtime; answers its name and version too.
    pub(crate) async fn connect(endpoint: &str) -> Result<(Self, String)> {
        const ADVICE: &str = "check --endpoint, that the runtime runs, and that you are root";
        let unreachable = || format!("the CRI runtime at {endpoint} does not answer: {ADVICE}");
        let channel = timeout(ANSWER, dial(endpoint)?.connect())
            .await
            .map_err(anyhow::Error::from)
            .and_then(|connected| connected.map_err(|error| anyhow!(root_cause(&error))))
            .with_context(unreachable)?;
        let mut cri = Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        };
        let version = timeout(ANSWER, cri.runtime.version(api::VersionRequest::default()))
            .await
            .map_err(anyhow::Error::from)
            .and_then(|answer| answer.map_err(refused))
            .with_context(unreachable)?
            .into_inner();
        let runtime = format!("{} {}", version.runtime_name, version.runtime_version);
        Ok((cri, runtime))
    }

    /// Makes a call, once more for as long as the runtime is not available. For calls that have the
    /// same result when they are repeated.
    async fn repeated<T>(
        &self,
        call: impl AsyncFn(RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, tonic::Status> {
        let start = Instant::now();
        loop {
            match call(self.runtime.clone()).await {
                Err(status) if is_unavailable(&status) && start.elapsed() < RESTARTED => sleep(RETRY).await,
                answer => return answer.map(tonic::Response::into_inner),
            }
        }
    }

    /// Waits until a runtime that was restarted answers.
    pub(crate) async fn wait_available(&self) -> Result<()> {
        sleep(RETRY).await;
        let version = self.repeated(async |mut it| it.version(api::VersionRequest::default()).await);
        version.await.map(drop).map_err(refused)
    }

    /// The driver of cgroups. A runtime from before this call is taken to have none.
    pub(crate) async fn driver(&mut self) -> Driver {
        let answer = self.runtime.runtime_config(api::RuntimeConfigRequest::default()).await;
        let linux = answer.ok().and_then(|answer| answer.into_inner().linux);
        match linux.map(|linux| linux.cgroup_driver()) {
            Some(CgroupDriver::Systemd) => Driver::Systemd,
            Some(CgroupDriver::Cgroupfs) | None => Driver::Cgroupfs,
        }
    }

    /// Pulls an image that the runtime does not have.
    pub(crate) async fn ensure_image(&mut self, image: &str) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < IMPORTED {
            if self.has_image(image).await? {
                return Ok(());
            }
            sleep(IMPORTED / 20).await;
        }
        let request = api::PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        self.images.pull_image(request).await.map_err(refused).with_context(|| {
            format!(
                "image {image} is not on this node and cannot be pulled: import an image with busybox \
                 (for containerd: ctr -n k8s.io images import FILE) and name it with --image"
            )
        })?;
        Ok(())
    }

    async fn has_image(&mut self, image: &str) -> Result<bool> {
        let request = api::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let status = self.images.image_status(request).await.map_err(refused);
        Ok(status.with_context(|| format!("querying image {image}"))?.into_inner().image.is_some())
    }

    /// Starts a pod.
    pub(crate) async fn run_pod(&mut self, spec: &PodSpec<'_>) -> Result<Pod> {
        let mut config = pod_config(spec);
        let mut restarts = 0;
        loop {
            let request = api::RunPodSandboxRequest {
                config: Some(config.clone()),
                runtime_handler: spec.handler.to_owned(),
            };
            match self.runtime.run_pod_sandbox(request).await.map_err(refused) {
                Ok(answer) => return Ok(Pod { id: answer.into_inner().pod_sandbox_id, config }),
                Err(error) if error.is::<Unavailable>() && restarts < MOST_RESTARTS => {
                    self.wait_available().await?;
                    restarts += 1;
                    // The name of the one that was interrupted stays in use.
                    config.metadata.get_or_insert_default().attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates a container, and answers its id.
    pub(crate) async fn create(&mut self, pod: &Pod, name: &str, image: &str, case: &Case) -> Result<String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(container_config(pod, name, image, case)),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.runtime.create_container(request).await.map_err(refused)?;
        Ok(answer.into_inner().container_id)
    }

    /// Starts a created container.
    pub(crate) async fn start(&mut self, id: &str) -> Result<()> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.start_container(request).await.map_err(refused)?;
        Ok(())
    }

    /// Stops a container: SIGTERM, and SIGKILL after `grace` seconds.
    pub(crate) async fn stop(&mut self, id: &str, grace: u32) -> Result<()> {
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout: grace.into() };
        let stopped = self.repeated(async |mut it| it.stop_container(request.clone()).await).await;
        stopped.map(drop).map_err(refused).context("stopping a container")
    }

    /// What CRI shows of a container now.
    pub(crate) async fn status(&mut self, id: &str, verbose: bool) -> Result<Status> {
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        let answer = match self.repeated(async |mut it| it.container_status(request.clone()).await).await {
            Ok(answer) => answer,
            Err(status) if status.code() == tonic::Code::NotFound => bail!(
                "container {id} was removed by another program: a kubelet removes pods that its API server \
                 does not have; stop it for the run (systemctl stop kubelet)"
            ),
            Err(status) => return Err(refused(status)).with_context(|| format!("querying container {id}")),
        };
        let status = answer.status.with_context(|| format!("the runtime has no status of container {id}"))?;
        let has_ended = status.state() == ContainerState::ContainerExited;
        let reading = Reading { reason: status.reason, status: status.exit_code };
        Ok(Status { ended: has_ended.then_some(reading), init: init(&answer.info) })
    }

    /// Removes a container; one that runs is killed first.
    pub(crate) async fn remove(&mut self, id: &str) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        let removed = self.repeated(async |mut it| it.remove_container(request.clone()).await).await;
        removed.map(drop).map_err(refused).context("removing a container")
    }

    /// Removes every pod of a run with its containers.
    pub(crate) async fn remove_pods(&mut self, run: &str) -> Result<()> {
        let filter = api::PodSandboxFilter {
            label_selector: HashMap::from([(RUN_LABEL.to_owned(), run.to_owned())]),
            ..Default::default()
        };
        let request = api::ListPodSandboxRequest { filter: Some(filter) };
        let pods = self.repeated(async |mut it| it.list_pod_sandbox(request.clone()).await).await;
        let mut outcome = Ok(());
        for pod in pods.map_err(refused).context("listing pods")?.items {
            outcome = outcome.and(self.remove_pod(&pod.id).await);
        }
        outcome
    }

    async fn remove_pod(&mut self, id: &str) -> Result<()> {
        let stop = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let remove = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let advice = || format!("pod {id} may remain: crictl rmp --force {id} removes it");
        let stopped = self.repeated(async |mut it| it.stop_pod_sandbox(stop.clone()).await).await;
        stopped.map_err(refused).with_context(advice)?;
        let removed = self.repeated(async |mut it| it.remove_pod_sandbox(remove.clone()).await).await;
        removed.map(drop).map_err(refused).with_context(advice)
    }
}

fn dial(endpoint: &str) -> Result<Endpoint> {
    let address = match endpoint.strip_prefix("unix://") {
        Some(path) => path,
        None => endpoint,
    };
    if !PathBuf::from(address).is_absolute() {
        bail!("--endpoint {endpoint}: give the socket as unix:///path/to/socket");
    }
    let endpoint = Endpoint::from_shared(format!("unix://{address}"))
        .with_context(|| format!("--endpoint {endpoint} is not an address"))?;
    Ok(endpoint.timeout(CALL))
}

/// tonic's text for a call that took longer than [`CALL`].
const TIMEOUT_EXPIRED: &str = "Timeout expired";

/// The innermost cause: `No such file or directory` instead of `transport error`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The runtime's own words, without those of the transport.
fn refused(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        _ if is_unavailable(&status) => Unavailable(status.message().to_owned()).into(),
        code => anyhow!("{} ({code:?})", status.message()),
    }
}

/// The connection failed, which is an error of this side, or the runtime is starting.
fn is_unavailable(status: &tonic::Status) -> bool {
    // A call that hangs has its own timeout, and is not repeated.
    let is_timeout = status.source().is_some_and(|it| root_cause(it) == TIMEOUT_EXPIRED);
    status.code() == tonic::Code::Unavailable
        || status.source().is_some() && !is_timeout
        // containerd's CRI answers before it has read its state.
        || status.message().contains("server is not initialized yet")
}

fn pod_config(spec: &PodSpec) -> api::PodSandboxConfig {
    let metadata = api::PodSandboxMetadata {
        name: spec.name.clone(),
        uid: spec.uid.clone(),
        namespace: NAMESPACE.to_owned(),
        attempt: 0,
    };
    let mut labels = labels([("pod.name", &spec.name), ("pod.namespace", NAMESPACE), ("pod.uid", &spec.uid)]);
    labels.insert(RUN_LABEL.to_owned(), spec.run.to_owned());
    let security =
        api::LinuxSandboxSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    api::PodSandboxConfig {
        metadata: Some(metadata),
        labels,
        log_directory: spec.logs.to_string_lossy().into_owned(),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent: spec.cgroup.clone(),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(pod: &Pod, name: &str, image: &str, case: &Case) -> api::ContainerConfig {
    let mut labels = pod.config.labels.clone();
    labels.extend(self::labels([("container.name", name)]));
    let group = case.group.then(|| ("memory.oom.group".to_owned(), "1".to_owned()));
    let resources = api::LinuxContainerResources {
        memory_limit_in_bytes: case.memory,
        memory_swap_limit_in_bytes: case.memory,
        unified: group.into_iter().collect(),
        ..Default::default()
    };
    let security =
        api::LinuxContainerSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: case.command.clone(),
        labels,
        log_path: log_file(name),
        linux: Some(api::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}

fn image_spec(image: &str) -> api::ImageSpec {
    api::ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn log_file(name: &str) -> String {
    format!("{name}.log")
}

/// The host's network, which needs no CNI, and a pid namespace for each container.
fn namespaces() -> api::NamespaceOption {
    api::NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

/// Labels as a kubelet sets them.
fn labels<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs.map(|(key, value)| (format!("io.kubernetes.{key}"), value.to_owned())).into()
}

/// The pid in the details of a verbose status. containerd and CRI-O both have it there; it is 0
/// after the end.
fn init(info: &HashMap<String, String>) -> Option<Pid> {
    let details: Value = serde_json::from_str(info.get("info")?).ok()?;
    Pid::from_raw(details["pid"].as_i64()?.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_an_absolute_path() {
        for good in ["unix:///run/containerd/containerd.sock", "/run/crio/crio.sock"] {
            assert!(dial(good).is_ok(), "{good}");
        }
        for bad in ["", "containerd.sock", "unix://containerd.sock", "http://localhost:1", "unix:"] {
            let error = dial(bad).unwrap_err().to_string();
            assert!(error.contains("give the socket as unix:///"), "{bad}: {error}");
        }
    }

    #[test]
    fn pid_is_read_from_a_verbose_status() {
        let of = |text: &str| init(&HashMap::from([("info".to_owned(), text.to_owned())]));
        assert_eq!(of(r#"{"pid": 42}"#), Pid::from_raw(42));
        for none in [r#"{"pid": 0}"#, r#"{"pid": "42"}"#, "{}", "x"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
