//! Pods and containers through CRI, with the requests that a kubelet sends.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api, NamespaceMode};
use tonic::transport::Channel;

use crate::containerd::{Containerd, IMAGE, STOCK};
use crate::wait::until;

/// The pod namespace of every test pod.
pub const NAMESPACE: &str = "coroner-tests";

/// A connection to the CRI plugin; it dials anew after containerd was restarted.
#[derive(Debug, Clone)]
pub struct Cri {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
}

/// A running pod sandbox on the host's network.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The pod's name.
    pub name: String,
    /// How long RunPodSandbox took.
    pub took: Duration,
    config: api::PodSandboxConfig,
}

impl Pod {
    /// The cgroup of its containers' cgroups, below the hierarchy's root, without a leading slash.
    pub fn cgroup(&self) -> &str {
        self.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.trim_start_matches('/'))
    }
}

/// What a pod's sandbox is made of.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// The pod's name.
    pub name: &'a str,
    /// The runtime handler.
    pub handler: &'a str,
    /// The parent of its cgroups: a path, or a slice of systemd.
    pub cgroup: &'a str,
    /// A folder for its containers' output.
    pub logs: &'a Path,
}

/// A created container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Container {
    /// The id it has in CRI, in containerd's events and as its cgroup's name.
    pub id: String,
    /// The name it has in its pod.
    pub name: String,
    log: PathBuf,
}

impl Container {
    /// Waits until the program has printed `text`.
    pub async fn wait_printed(&self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("container {} to print `{text}`", self.name);
        let printed =
            async || Ok(fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text)).then_some(()));
        until(&what, deadline, printed).await
    }
}

impl Cri {
    /// Dials containerd's gRPC socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = containerd_client::connect(socket).await?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel) })
    }

    /// CRI's own version call, answered once the plugin has recovered its state.
    pub async fn version(&mut self) -> Result<String> {
        let answer = self.runtime.version(api::VersionRequest::default()).await?;
        Ok(answer.into_inner().runtime_version)
    }

    /// Starts a pod's sandbox, with the stock shim and in the cgroup of all.
    pub async fn run_pod(&mut self, containerd: &Containerd, name: &str) -> Result<Pod> {
        let (cgroup, logs) = (format!("/{}", containerd.cgroup()), containerd.logs());
        self.run_sandbox(Sandbox { name, handler: STOCK, cgroup: &cgroup, logs: &logs }).await
    }

    /// Starts a pod's sandbox, with the shim of a runtime handler and in a cgroup of its own.
    pub async fn run_pod_as(&mut self, containerd: &Containerd, name: &str, handler: &str) -> Result<Pod> {
        let (cgroup, logs) = (format!("/{}/{name}", containerd.cgroup()), containerd.logs());
        self.run_sandbox(Sandbox { name, handler, cgroup: &cgroup, logs: &logs }).await
    }

    /// Starts a pod's sandbox.
    pub async fn run_sandbox(&mut self, sandbox: Sandbox<'_>) -> Result<Pod> {
        let Sandbox { name, handler, cgroup, logs } = sandbox;
        let uid = format!("{}-{name}", cgroup.trim_start_matches('/').replace('/', "-"));
        let metadata = api::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.clone(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        };
        let labels = labels([("pod.name", name), ("pod.namespace", NAMESPACE), ("pod.uid", &uid)]);
        let config = api::PodSandboxConfig {
            metadata: Some(metadata),
            labels,
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: cgroup.to_owned(),
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request =
            api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let start = Instant::now();
        let answer = self.runtime.run_pod_sandbox(request).await.context("running a pod sandbox")?;
        let took = start.elapsed();
        Ok(Pod { id: answer.into_inner().pod_sandbox_id, name: name.to_owned(), took, config })
    }

    /// Creates a container of the test program with `arguments` and a memory limit.
    pub async fn create(
        &mut self,
        pod: &Pod,
        name: &str,
        limit_mb: i64,
        arguments: &str,
    ) -> Result<Container> {
        let mut labels = pod.config.labels.clone();
        labels.extend(self::labels([("container.name", name)]));
        let config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(api::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            args: arguments.split(' ').map(str::to_owned).collect(),
            labels,
            log_path: format!("{name}.log"),
            linux: Some(api::LinuxContainerConfig {
                resources: Some(api::LinuxContainerResources {
                    memory_limit_in_bytes: limit_mb << 20,
                    memory_swap_limit_in_bytes: limit_mb << 20,
                    ..Default::default()
                }),
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.runtime.create_container(request).await.context("creating a container")?;
        let log = Path::new(&pod.config.log_directory).join(format!("{name}.log"));
        Ok(Container { id: answer.into_inner().container_id, name: name.to_owned(), log })
    }

    /// Starts a created container, and answers how long StartContainer took.
    pub async fn start(&mut self, container: &Container) -> Result<Duration> {
        let request = api::StartContainerRequest { container_id: container.id.clone() };
        let start = Instant::now();
        self.runtime.start_container(request).await.context("starting a container")?;
        Ok(start.elapsed())
    }

    /// Creates and starts a container.
    pub async fn run(&mut self, pod: &Pod, name: &str, limit_mb: i64, arguments: &str) -> Result<Container> {
        let container = self.create(pod, name, limit_mb, arguments).await?;
        self.start(&container).await?;
        Ok(container)
    }

    /// Stops a container: SIGTERM, and SIGKILL after `timeout` seconds.
    pub async fn stop(&mut self, container: &Container, timeout: i64) -> Result<()> {
        let request = api::StopContainerRequest { container_id: container.id.clone(), timeout };
        self.runtime.stop_container(request).await.context("stopping a container")?;
        Ok(())
    }

    /// Removes a container; one that runs is killed first.
    pub async fn remove(&mut self, container: &Container) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: container.id.clone() };
        self.runtime.remove_container(request).await.context("removing a container")?;
        Ok(())
    }
}

/// The host's network, a pid namespace for each container: a kubelet's default but for the network,
/// which needs no CNI.
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
