//! A containerd of its own: stock binary, stock runc shim, private root, state, sockets and cgroup.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cri::{Container, Cri};
use crate::process::{Process, logged};
use crate::scratch::Scratch;
use crate::wait::until;
use crate::{binary, image, program};

/// The image of every test container; its entry point is the test program.
pub const IMAGE: &str = "localhost/oomtest:1";
const SANDBOX_IMAGE: &str = "localhost/pause:1";

const PROGRAM: &str = "/bin/oomtest";
/// The wrapper, a binary and a package of this name.
const WRAPPER: &str = "containerd-shim-coroner-v2";
const SHIM_CONFIG: &str = "shim.toml";
/// containerd 1.6 hands a runtime type that it does not know no options: there is no table of them.
const WRAPPED: &str = r#"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.coroner]
    runtime_type = "io.containerd.coroner.v2"
"#;

/// Ready takes 0.1 s on an idle machine.
const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

/// A private containerd with its CRI plugin and the images loaded. Dropped, it and all its containers are ended.
#[derive(Debug)]
pub struct Containerd {
    // Before the folder: what runs is ended before its files go.
    process: Option<Process>,
    /// The folder in front of its `PATH`, with the wrapper in it, where pods can be wrapped.
    wrapper: Option<PathBuf>,
    scratch: Scratch,
}

impl Containerd {
    /// Starts it and waits until CRI answers.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// The same with a second runtime handler, `coroner`, whose shims are wrapped; `shim`: the wrapper's configuration, in which `@DIR@`
    /// stands for containerd's folder.
    pub async fn start_wrapped(shim: &str) -> Result<Self> {
        Self::start_with(Some(shim)).await
    }

    async fn start_with(shim: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new()?;
        for directory in ["cni", "logs"] {
            fs::create_dir(scratch.path(directory))?;
        }
        let mut text = config(&scratch);
        let mut wrapper = None;
        if let Some(shim) = shim {
            text.push_str(WRAPPED);
            fs::write(
                scratch.path(SHIM_CONFIG),
                shim.replace("@DIR@", &scratch.directory().to_string_lossy()),
            )?;
            let folder = scratch.path("bin");
            fs::create_dir(&folder)?;
            // 1.6 finds a runtime by its type's name, in PATH: `io.containerd.coroner.v2`.
            symlink(binary::find(WRAPPER, WRAPPER)?, folder.join(WRAPPER))?;
            wrapper = Some(folder);
        }
        fs::write(scratch.path("config.toml"), text)?;
        let mut containerd = Self { process: None, wrapper, scratch };
        containerd.start_again().await?;
        containerd.import(SANDBOX_IMAGE, &[PROGRAM, "pause"])?;
        containerd.import(IMAGE, &[PROGRAM])?;
        Ok(containerd)
    }

    /// Starts it after `stop` or `kill`, on the state it left.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "containerd runs already");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.scratch.path("config.toml"));
        if let Some(folder) = &self.wrapper {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", folder.display()));
            command.env("CORONER_SHIM_CONFIG", self.scratch.path(SHIM_CONFIG));
        }
        let process = self.process.insert(Process::start("containerd", &mut command, &self.log())?);
        let socket = self.scratch.path("containerd.sock");
        until("containerd's CRI plugin to answer", READY, async || {
            process.check_running()?;
            let Ok(mut cri) = Cri::connect(&socket).await else { return Ok(None) };
            Ok(cri.version().await.ok())
        })
        .await?;
        Ok(())
    }

    /// Ends it by SIGTERM; its shims and containers live on.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("containerd does not run")?;
        process.terminate(STOP).await?;
        Ok(())
    }

    /// Ends it by SIGKILL; its shims and containers live on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("containerd does not run")?.kill()?;
        Ok(())
    }

    /// Connects to its CRI plugin.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket()).await
    }

    /// Waits until its CRI plugin says, in the log, that it took `times` TaskOOM of a container in.
    pub async fn wait_oom_taken_in(
        &self,
        container: &Container,
        times: usize,
        deadline: Duration,
    ) -> Result<()> {
        let what = format!("CRI to take in {times} TaskOOM of {}", container.name);
        let words = ["TaskOOM event", container.id.as_str()];
        until(&what, deadline, async || Ok((logged(&self.log(), &words)? >= times).then_some(()))).await
    }

    /// Its gRPC socket; the ttrpc socket has `.ttrpc` appended.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path("containerd.sock")
    }

    /// What the wrapper has logged.
    pub fn shim_log(&self) -> PathBuf {
        self.scratch.path("shim.log")
    }

    /// Where containers write their logs.
    pub fn logs(&self) -> PathBuf {
        self.scratch.path("logs")
    }

    /// The cgroup of all its pods, below the hierarchy's root, without a leading slash.
    pub fn cgroup(&self) -> &str {
        self.scratch.name()
    }

    fn log(&self) -> PathBuf {
        self.scratch.path("containerd.log")
    }

    fn import(&self, reference: &str, entrypoint: &[&str]) -> Result<()> {
        let archive = self.scratch.path("image.tar");
        fs::write(&archive, image::archive(reference, "oomtest", program::oomtest()?, entrypoint)?)?;
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .context("starting ctr: is containerd installed?")?;
        ensure!(
            output.status.success(),
            "importing {reference}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Everything private; the rest is what containers need to start as root in any container or virtual machine. Without an
/// `options` table of the CRI runtime other than `Root`, the shim's cgroups are runc's own default.
fn config(scratch: &Scratch) -> String {
    const CONFIG: &str = r#"version = 2
root = "@DIR@/root"
state = "@DIR@/state"
[grpc]
  address = "@DIR@/containerd.sock"
[ttrpc]
  address = "@DIR@/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "@DIR@/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "@PAUSE@"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@DIR@/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "@DIR@/runc"
"#;
    CONFIG.replace("@DIR@", &scratch.directory().to_string_lossy()).replace("@PAUSE@", SANDBOX_IMAGE)
}
