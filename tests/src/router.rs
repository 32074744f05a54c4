//! The real `coroner run`, with its configuration, policies, audit file and log in a folder of its
//! own.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::binary;
use crate::process::{Process, check_clean, logged};
use crate::scratch::Scratch;
use crate::wait::until;

/// Policies are compiled before the router is ready: 15 ms each, on a machine that may be compiling
/// Rust beside.
const READY: Duration = Duration::from_secs(30);
/// The router itself gives up what has not run dry after 5 s.
const STOP: Duration = Duration::from_secs(10);

const JOURNAL: &str = "[journal]\ndirectory = \"@DIR@/journal\"\n";

/// What most configurations here begin with: everything in the router's own folder, this
/// containerd, its sink, and the audit.
pub fn usual(node: &str, containerd: &Path) -> String {
    begin(node, &format!("address = \"{}\"", containerd.display()))
}

/// The same where containerd's event socket is played, as `@DIR@/containerd.sock`, and there is no
/// other.
pub fn usual_played(node: &str) -> String {
    begin(node, "address = \"@DIR@/no-such.sock\"\nttrpc_address = \"@DIR@/containerd.sock\"")
}

fn begin(node: &str, containerd: &str) -> String {
    format!(
        r#"
node = "{node}"

[policies]
directory = "@DIR@/policies"
cache = "@DIR@/cache"

[control]
socket = "@DIR@/control.sock"

[containerd]
{containerd}

[[sink]]
name = "containerd"
type = "containerd"

[[sink]]
name = "audit"
type = "jsonl"
path = "@DIR@/audit.jsonl"
"#
    )
}

/// What a router takes, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Its own, not backed by a file.
    pub anonymous: u64,
    /// All that is in memory.
    pub resident: u64,
}

/// A router. Dropped, it is ended.
#[derive(Debug)]
pub struct Router {
    process: Option<Process>,
    scratch: Scratch,
    binary: PathBuf,
}

impl Router {
    /// Starts it on the configuration `toml`, in which `@DIR@` stands for the router's folder, and
    /// waits until it is ready. The folder `@DIR@/policies` is there, and empty. `audit` reads
    /// `@DIR@/audit.jsonl`.
    pub async fn start(toml: &str) -> Result<Self> {
        Self::start_in(Scratch::new()?, toml).await
    }

    /// The same in a folder that is there already, so that its peers can be.
    pub async fn start_in(scratch: Scratch, toml: &str) -> Result<Self> {
        fs::create_dir(scratch.path("policies"))?;
        // Two routers cannot have one journal, and the default one is the node's.
        let own = if toml.contains("[journal]") { "" } else { JOURNAL };
        let toml = format!("{toml}\n{own}").replace("@DIR@", &scratch.directory().to_string_lossy());
        fs::write(scratch.path("coroner.toml"), toml)?;
        let mut router = Self { process: None, scratch, binary: binary::find("coroner", "coroner-cli")? };
        router.start_again().await?;
        Ok(router)
    }

    /// Starts it again after `stop` or `kill`: same binary, configuration and folder.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the router runs already");
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.scratch.path("coroner.toml"));
        let process = Process::start("coroner", &mut command, &self.scratch.path("router.log"))?;
        self.process.insert(process).wait_ready(READY).await
    }

    /// Ends it by SIGTERM; fails unless it ends cleanly.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the router does not run")?;
        check_clean("coroner", process.terminate(STOP).await?)
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the router does not run")?.kill()?;
        Ok(())
    }

    /// Drops a file into the policy directory as a careful operator does: written beside, then
    /// renamed.
    pub fn drop_in(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let partial = self.policies().join(format!(".{name}"));
        fs::write(&partial, bytes)?;
        Ok(fs::rename(partial, self.policies().join(name))?)
    }

    /// Runs `coroner` with these arguments against this router's control socket.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let socket = self.scratch.path("control.sock");
        let output = Command::new(&self.binary).args(arguments).env("CORONER_SOCKET", socket).output();
        output.context("running a command of coroner's")
    }

    /// The JSON document that `coroner ... --json` prints.
    pub fn request(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(&[arguments, &["--json"]].concat())?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {output:?}"))
    }

    /// Waits until `coroner policy list` is as `wanted`.
    pub async fn wait_listed(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        const DEADLINE: Duration = Duration::from_secs(30);
        until(what, DEADLINE, async || Ok(Some(self.request(&["policy", "list"])?).filter(&wanted))).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the router does not run")?.signal(signal)
    }

    /// Memory of its own and memory in all, in KiB, as the kernel adds them up in smaps_rollup.
    pub fn memory(&self) -> Result<Memory> {
        let process = self.process.as_ref().context("the router does not run")?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid()))?;
        let of = |key: &str| -> Result<u64> {
            let line = rollup.lines().find(|line| line.starts_with(key)).context("a line of smaps_rollup")?;
            Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
        };
        Ok(Memory { anonymous: of("Anonymous:")?, resident: of("Rss:")? })
    }

    /// Processor time it took so far.
    pub fn cpu(&self) -> Result<Duration> {
        let process = self.process.as_ref().context("the router does not run")?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
        // proc(5): the name ends with the last parenthesis; user and system time are the 12th and
        // 13th after it, in hundredths of a second.
        let (_, after) = stat.rsplit_once(')').context("a name in parentheses")?;
        let ticks: Vec<u64> =
            after.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Its folder, cgroup and name, for what goes with it.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where policies are dropped.
    pub fn policies(&self) -> PathBuf {
        self.scratch.path("policies")
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Lines of the log, over all its starts, that hold `message`.
    pub fn logged(&self, message: &str) -> Result<usize> {
        logged(&self.scratch.path("router.log"), &[message])
    }

    /// Waits until the log holds `message` in `times` lines.
    pub async fn wait_logged(&self, message: &str, times: usize, deadline: Duration) -> Result<()> {
        let what = format!("the router to log `{message}`");
        until(&what, deadline, async || Ok((self.logged(message)? >= times).then_some(()))).await
    }

    /// The audit records so far, over all its starts. A last line that is not yet whole is left
    /// out.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let file = self.scratch.path("audit.jsonl");
        let text = if file.exists() { fs::read_to_string(file)? } else { String::new() };
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| serde_json::from_str(line).with_context(|| format!("an audit line: {line}")))
            .collect()
    }

    /// Waits until the audit shows that the signal with this sequence number was ruled, and that
    /// containerd has the events of the ruling.
    pub async fn wait_delivered(&self, seq: u64) -> Result<()> {
        const DEADLINE: Duration = Duration::from_secs(60);
        /// As a ruling's record lists an event in the lane of containerd.
        const QUEUED: &str = "{\"sink\":\"containerd\",";
        /// Of a file that may be large, the end: some hundred records.
        const END: i64 = 512 << 10;
        let (ruled, delivered) = (format!(":{seq}\",\"at\":"), format!(":{seq}\",\"sink\":\"containerd\""));
        let file = self.scratch.path("audit.jsonl");
        until(&format!("the delivery of signal {seq}"), DEADLINE, async || {
            let mut file = fs::File::open(&file)?;
            let length = i64::try_from(file.metadata()?.len())?;
            file.seek(SeekFrom::End(-END.min(length)))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            let end = String::from_utf8_lossy(&end);
            let queued = end.lines().find(|line| line.contains(&ruled)).map(|line| line.contains(QUEUED));
            Ok((queued == Some(false) || end.contains(&delivered)).then_some(()))
        })
        .await
    }

    /// Waits for the first audit record that `wanted` accepts.
    pub async fn wait_record(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(what, deadline, async || Ok(self.audit()?.into_iter().find(&wanted))).await
    }
}
