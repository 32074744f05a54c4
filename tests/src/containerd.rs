//! A containerd of its own: stock binary, stock runc shim, private root, state, sockets and cgroup;
//! at the request of a suite, Coroner's wrapper of the shim beside the stock one, or another
//! Debian's binaries.

mod config;
mod programs;
mod setting;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::config::Version;
use self::programs::Programs;
pub use self::setting::{Release, STOCK, Setting, WRAPPED};
use crate::cri::{Container, Cri};
use crate::image::Program;
use crate::process::{Process, logged};
use crate::scratch::Scratch;
use crate::wait::until;
use crate::{binary, image, program};

/// The image of every test container; its entry point is the test program.
pub const IMAGE: &str = "localhost/oomtest:1";
/// The image that [`Containerd::import_busybox`] adds.
pub const BUSYBOX: &str = "localhost/busybox:1";
const SANDBOX_IMAGE: &str = "localhost/pause:1";

const PROGRAM: &str = "/bin/oomtest";
/// The package and the binary that wraps a shim.
const WRAPPER: &str = "containerd-shim-coroner-v2";
/// Ready takes 0.1 s on an idle machine.
const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

/// The archive of [`IMAGE`], for a containerd that this harness does not start.
pub fn image_archive() -> Result<Vec<u8>> {
    image::archive(IMAGE, oomtest()?, &[PROGRAM])
}

fn oomtest() -> Result<Program<'static>> {
    Ok(Program { name: "oomtest", bytes: program::oomtest()?, links: &[] })
}

/// A private containerd with its CRI plugin and the images loaded. Dropped, it and all its
/// containers are ended.
#[derive(Debug)]
pub struct Containerd {
    // Before the folder: what runs is ended before its files go.
    process: Option<Process>,
    programs: Programs,
    version: Version,
    scratch: Scratch,
}

impl Containerd {
    /// Starts this machine's, with the stock shim alone, and waits until CRI answers.
    pub async fn start() -> Result<Self> {
        Self::start_as(&Setting::default()).await
    }

    /// Starts it with a `setting`, and waits until CRI answers.
    pub async fn start_as(setting: &Setting) -> Result<Self> {
        let scratch = Scratch::new()?;
        for directory in ["cni", "logs", "bin"] {
            fs::create_dir(scratch.path(directory))?;
        }
        let release = Release::of_environment()?.unwrap_or_else(|| setting.release.clone());
        let programs = Programs::of(&release, &scratch.path("root.log")).await?;
        let version = Version::of(&mut programs.command("containerd"))?;
        let config = config::text(version, scratch.directory(), SANDBOX_IMAGE, setting.handlers());
        fs::write(scratch.path("config.toml"), config)?;
        let mut containerd = Self { process: None, programs, version, scratch };
        if let Some(toml) = setting.shim_config() {
            containerd.configure_shim(toml)?;
        }
        if !setting.handlers().is_empty() {
            containerd.install_wrapper(setting.handlers())?;
        }
        containerd.start_again().await?;
        containerd.import(SANDBOX_IMAGE, oomtest()?, &[PROGRAM, "pause"])?;
        containerd.import(IMAGE, oomtest()?, &[PROGRAM])?;
        Ok(containerd)
    }

    /// Starts it after `stop` or `kill`, on the state it left.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "containerd runs already");
        let mut command = self.programs.command("containerd");
        command
            .arg("--config")
            .arg(self.scratch.path("config.toml"))
            .env("PATH", self.programs.search_path(self.scratch.path("bin"))?)
            .env("CORONER_SHIM_CONFIG", self.shim_config());
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

    /// Writes the wrapper's configuration, in which `@DIR@` stands for containerd's folder. It
    /// holds for pods started from now on.
    pub fn configure_shim(&self, toml: &str) -> Result<()> {
        let toml = toml.replace("@DIR@", &self.scratch.directory().to_string_lossy());
        Ok(fs::write(self.shim_config(), toml)?)
    }

    /// Adds the image [`BUSYBOX`]: a shell, and the programs that the cases of `deathtest` run.
    pub fn import_busybox(&self) -> Result<()> {
        const FILE: &str = "/bin/busybox";
        let bytes =
            fs::read(FILE).with_context(|| format!("reading {FILE}, of the package busybox-static"))?;
        let busybox = Program { name: "busybox", bytes: &bytes, links: &["sh", "dd", "sleep"] };
        self.import(BUSYBOX, busybox, &[])
    }

    /// Connects to its CRI plugin.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket()).await
    }

    /// Waits until the log of its CRI plugin shows `times` TaskOOM events received for a container.
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

    /// The version it reports.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A file in its folder: `state` holds its shims' bundles, `shim.toml` the wrapper's
    /// configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
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

    fn shim_config(&self) -> PathBuf {
        self.scratch.path("shim.toml")
    }

    /// Puts the wrapper into a folder of this containerd's own, once under the name of each
    /// handler, which it is configured by.
    fn install_wrapper(&self, handlers: &[String]) -> Result<()> {
        let built = binary::find(WRAPPER, WRAPPER)?;
        for handler in handlers {
            let own = config::wrapper(self.scratch.directory(), handler);
            fs::copy(&built, &own).with_context(|| format!("copying {} to {own}", built.display()))?;
        }
        Ok(())
    }

    fn import(&self, reference: &str, program: Program, entrypoint: &[&str]) -> Result<()> {
        let archive = self.scratch.path("image.tar");
        fs::write(&archive, image::archive(reference, program, entrypoint)?)?;
        let output = self
            .programs
            .command("ctr")
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
