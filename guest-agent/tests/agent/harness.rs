//! An agent in a thread of its own, scratch cgroups, containers in pid namespaces of their own, and
//! readers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coroner_agent::{EvidenceDetail, Options};
use coroner_proto::agent::{
    Exited, HelloRequest, NextSignalsRequest, OomKill, SettleRequest, SettleResponse, Signal,
    SnapshotRequest, WatchRequest,
};
use coroner_proto::agent_ttrpc::AgentClient;
use coroner_transport::Address;
use tokio::sync::oneshot;
use ttrpc::asynchronous::Client;
use ttrpc::context;

use crate::reports::ContainerReports;

/// No test takes a second; this allows for a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Where this kernel's v1 memory controller is.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup/memory";

/// A number that no other test of this run has, nor another run.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A root for containers of this test alone. It goes, with all in it, at the end.
pub(crate) struct Scratch {
    pub(crate) name: String,
    folder: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make cgroups and pid namespaces: run them as root"
        );
        assert!(
            Path::new(MOUNT).join("memory.oom_control").exists(),
            "these tests take a v1 memory controller at {MOUNT}; v2 is tested in a guest"
        );
        let name = format!("coroner-agent-test-{}", unique());
        let folder = Path::new(MOUNT).join(&name);
        fs::create_dir(&folder).unwrap();
        Self { name, folder }
    }

    /// A container's cgroup with a limit in bytes.
    pub(crate) fn cgroup(&self, id: &str, limit: u64) -> PathBuf {
        let folder = self.folder.join(id);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
        if folder.join("memory.memsw.limit_in_bytes").exists() {
            fs::write(folder.join("memory.memsw.limit_in_bytes"), limit.to_string()).unwrap();
        }
        folder
    }

    /// Where a container's cgroup is.
    pub(crate) fn folder(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    pub(crate) fn path(&self, id: &str) -> String {
        format!("/{}/{id}", self.name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        clear(&self.folder);
    }
}

/// Kills what is left in a cgroup and below it, and removes them.
fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
    for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
        Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status().ok();
    }
    remove(folder);
}

/// Removes a cgroup as soon as it is empty.
pub(crate) fn remove(folder: &Path) {
    let begun = Instant::now();
    while folder.is_dir() && fs::remove_dir(folder).is_err() && begun.elapsed() < TIMEOUT {
        std::thread::yield_now();
    }
}

/// Runs a shell script as pid 1 of a container: a runtime's process enters the cgroup and makes the
/// init from there.
pub(crate) fn contain(cgroup: &Path, script: &str) -> Child {
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec unshare --pid --fork --kill-child sh -c \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter]).arg(cgroup).arg(script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// A process in a cgroup, in our own pid namespace.
pub(crate) fn enter(cgroup: &Path, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\"; echo up; eval \"$1\""]).arg(cgroup).arg(script);
    let mut child = command.arg0("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    child
}

/// A container or a process to watch.
pub(crate) fn watch(id: &str, cgroup: String, pid: Option<u32>, exec: Option<&str>) -> WatchRequest {
    WatchRequest {
        container_id: id.to_owned(),
        cgroup,
        init_pid: pid,
        exec_id: exec.map(str::to_owned),
        ..WatchRequest::default()
    }
}

/// The agent, until dropped.
pub(crate) struct Agent {
    pub(crate) address: Address,
    _folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Agent {
    /// Starts it and waits until it listens.
    pub(crate) fn start(roots: &[&str], cgroup_mount: Option<PathBuf>) -> Self {
        Self::start_with(roots, cgroup_mount, EvidenceDetail::Full)
    }

    pub(crate) fn start_with(
        roots: &[&str],
        cgroup_mount: Option<PathBuf>,
        evidence: EvidenceDetail,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("agent.sock"));
        let roots = roots.iter().map(|root| (*root).to_owned()).collect();
        let listen = vec![address.clone()];
        let options = Options { listen, roots, cgroup_mount, evidence, ..Options::default() };
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            // As the command does.
            rustix::process::setpriority_process(None, -15).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let run = coroner_agent::run(options, || ready.send(()).unwrap(), async { drop(stopped.await) });
            runtime.block_on(run).map(drop).map_err(|error| error.to_string())
        });
        is_ready.recv_timeout(TIMEOUT).expect("the agent starts");
        Self { address, _folder: folder, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    }

    pub(crate) async fn client(&self) -> AgentClient {
        client(&self.address).await
    }

    pub(crate) async fn reader(&self) -> Reader {
        Reader::connect(&self.address).await
    }
}

async fn client(address: &Address) -> AgentClient {
    AgentClient::new(Client::new(coroner_transport::connect(address).await.unwrap()))
}

/// The agent's program, which can be stopped for a while.
pub(crate) struct AgentProgram {
    child: Child,
    address: Address,
    _folder: tempfile::TempDir,
}

impl AgentProgram {
    pub(crate) fn start(root: &str) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_coroner-agent")), root)
    }

    /// With tracefs, and without the kernel's log. Only the agent sees these mounts.
    pub(crate) fn start_with_trace_alone(root: &str) -> Self {
        Self::start_by_mounts("mount -t tracefs none /sys/kernel/tracing && mount -t tmpfs none /dev", root)
    }

    /// With tracefs and the kernel's log.
    pub(crate) fn start_with_trace(root: &str) -> Self {
        Self::start_by_mounts("mount -t tracefs none /sys/kernel/tracing", root)
    }

    fn start_by_mounts(mounts: &str, root: &str) -> Self {
        let mut command = Command::new("unshare");
        let script = format!("{mounts} && exec \"$0\" \"$@\"");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_coroner-agent")]);
        Self::start_by(command, root)
    }

    fn start_by(mut command: Command, root: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        command.args(["run", "--root", root, "--listen"]).arg(format!("unix://{}", socket.display()));
        let child = command.spawn().unwrap();
        let begun = Instant::now();
        // The socket is there before the agent listens at it.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < TIMEOUT, "the agent listens");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { child, address: Address::Unix(socket), _folder: folder }
    }

    pub(crate) async fn reader(&self) -> Reader {
        Reader::connect(&self.address).await
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for AgentProgram {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

pub(crate) fn limit() -> context::Context {
    context::with_duration(TIMEOUT)
}

/// A reader with a cursor.
pub(crate) struct Reader {
    pub(crate) client: AgentClient,
    pub(crate) stream: String,
    pub(crate) after: u64,
    pub(crate) ack: u64,
    /// Every signal received so far.
    pub(crate) seen: Vec<Signal>,
}

impl Reader {
    async fn connect(address: &Address) -> Self {
        let client = client(address).await;
        let hello = client.hello(limit(), &HelloRequest::default()).await.unwrap();
        Self { client, stream: hello.stream_id, after: 0, ack: 0, seen: Vec::new() }
    }

    /// Starts a container as runtimes do: its init is made, and goes on to the script only later.
    pub(crate) async fn run(&mut self, scratch: &Scratch, id: &str, limit: u64, script: &str) -> Child {
        let mut child = contain(&scratch.cgroup(id, limit), &format!("read start; {script}"));
        let begun = Instant::now();
        while !self.snapshot().await.iter().any(|it| it.id == id && it.init_pid.is_some()) {
            assert!(begun.elapsed() < TIMEOUT, "no init of {id}");
        }
        child.stdin.as_mut().unwrap().write_all(b"start\n").unwrap();
        child
    }

    /// One call.
    pub(crate) async fn next(&mut self, wait_ms: u32) -> Vec<Signal> {
        let request = NextSignalsRequest {
            stream_id: self.stream.clone(),
            after_seq: self.after,
            ack_seq: self.ack,
            wait_ms,
            ..NextSignalsRequest::default()
        };
        let answer = self.client.next_signals(limit(), &request).await.unwrap();
        assert_eq!(answer.stream_id, self.stream);
        for signal in &answer.signals {
            assert!(signal.seq > self.after, "by rising seq");
            assert!(signal.boot_ns > 0 && signal.wall_ms > 1_700_000_000_000);
            self.after = signal.seq;
        }
        self.seen.extend(answer.signals.iter().cloned());
        answer.signals
    }

    /// Reads until a container's own exit is received, and returns every report of the container.
    pub(crate) async fn until_exit(&mut self, id: &str) -> ContainerReports {
        let begun = Instant::now();
        loop {
            let reports = ContainerReports::of(&self.seen, id);
            if reports.exit.is_some() {
                return reports;
            }
            assert!(begun.elapsed() < TIMEOUT, "no exit of {id} in {:?}", self.seen);
            self.next(1000).await;
        }
    }

    /// Reads until the exit of a container's exec is received.
    pub(crate) async fn until_exec_exit(&mut self, id: &str, exec: &str) -> Exited {
        let begun = Instant::now();
        loop {
            let execs = ContainerReports::of(&self.seen, id).execs;
            if let Some((_, exit)) = execs.into_iter().find(|(it, _)| it == exec) {
                return exit;
            }
            assert!(begun.elapsed() < TIMEOUT, "no exit of {exec} in {:?}", self.seen);
            self.next(1000).await;
        }
    }

    /// Reads until a kill of a container is received.
    pub(crate) async fn until_kill(&mut self, id: &str) -> OomKill {
        let begun = Instant::now();
        loop {
            if let Some((_, kill)) = ContainerReports::of(&self.seen, id).kills.pop() {
                return kill;
            }
            assert!(begun.elapsed() < TIMEOUT, "no kill in {id} in {:?}", self.seen);
            self.next(1000).await;
        }
    }

    pub(crate) async fn final_count(&self, id: &str) -> SettleResponse {
        let request = SettleRequest { container_id: id.to_owned(), ..SettleRequest::default() };
        self.client.settle(limit(), &request).await.unwrap()
    }

    pub(crate) async fn watch(&self, request: WatchRequest) -> ttrpc::Result<()> {
        self.client.watch(limit(), &request).await.map(drop)
    }

    pub(crate) async fn snapshot(&self) -> Vec<coroner_proto::agent::Container> {
        let mut containers: Vec<coroner_proto::agent::Container> = Vec::new();
        loop {
            let after_container_id = containers.last().map(|it| it.id.clone()).unwrap_or_default();
            let request = SnapshotRequest { after_container_id, ..SnapshotRequest::default() };
            let page = self.client.snapshot(limit(), &request).await.unwrap();
            containers.extend(page.containers);
            if !page.more {
                return containers;
            }
        }
    }
}
