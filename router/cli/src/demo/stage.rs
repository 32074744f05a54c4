//! The demo's scratch cgroup and the processes that live and die in it. Whatever happens, it is
//! cleared.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use coroner_proto::agent::WatchRequest;
use coroner_proto::agent_ttrpc::AgentClient;
use coroner_transport::Address;
use ttrpc::asynchronous::Client;

use crate::render::note;

/// The cgroup's limit in bytes: enough for this program to start, little enough to be reached at
/// once.
pub(super) const LIMIT: u64 = 32 << 20;

/// The name of the processes that live and die in the cgroup, as the kernel and `ps` show it. It is
/// this program, started through `/proc/self/exe`, so the kernel would call it `exe`.
pub(super) const VICTIM: &str = "demo-victim";

/// Why the demo cannot be staged, or stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error("no cgroup can be made: this takes root, you are uid {0}")]
    NotRoot(u32),
    #[error("no cgroup hierarchy with a memory controller is mounted below /sys/fs/cgroup")]
    NoMemory,
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the agent does not take the container: {0}")]
    Watch(String),
}

/// A cgroup with one container in it.
pub(super) struct Stage {
    folder: Folder,
    root: PathBuf,
    root_name: String,
    container: String,
    v2: bool,
    init: Option<Child>,
}

/// A folder that goes with its owner.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: a folder in the temporary directory does no harm.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A scratch folder for sockets.
pub(super) fn folder() -> Result<Folder, StageError> {
    let path = std::env::temp_dir().join(format!("coroner-demo-{}", std::process::id()));
    make(&path)?;
    Ok(Folder(path))
}

impl Stage {
    /// Makes the cgroup, with its limit and without processes.
    pub(super) fn set() -> Result<Self, StageError> {
        let uid = rustix::process::geteuid().as_raw();
        if uid != 0 {
            return Err(StageError::NotRoot(uid));
        }
        let (mount, v2) = hierarchy()?;
        let root_name = format!("coroner-demo-{}", std::process::id());
        let container = format!("{:064x}", std::process::id());
        let root = mount.join(&root_name);
        let stage = Self { folder: folder()?, root, root_name, container, v2, init: None };
        make(&stage.root)?;
        if v2 {
            write(&mount.join("cgroup.subtree_control"), "+memory")?;
            write(&stage.root.join("cgroup.subtree_control"), "+memory")?;
        }
        let cgroup = stage.cgroup();
        make(&cgroup)?;
        let limit = LIMIT.to_string();
        write(&cgroup.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" }), &limit)?;
        // Where there is swap, the child would be slow to die. The file is missing on kernels
        // without swap accounting.
        let (swap, most) =
            if v2 { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", limit.as_str()) };
        if cgroup.join(swap).exists() {
            write(&cgroup.join(swap), most)?;
        }
        Ok(stage)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn root_name(&self) -> &str {
        &self.root_name
    }

    pub(super) fn cgroup_path(&self) -> String {
        format!("/{}/{} (v{})", self.root_name, self.container, if self.v2 { 2 } else { 1 })
    }

    fn cgroup(&self) -> PathBuf {
        self.root.join(&self.container)
    }

    /// Starts the container's init in the cgroup, has the agent watch it, and lets it run.
    pub(super) async fn start(&mut self, agent: &Address) -> Result<(), StageError> {
        let program = PathBuf::from("/proc/self/exe");
        let failed = |what| {
            let path = program.clone();
            move |source| StageError::Io { what, path, source }
        };
        let mut init = Command::new(&program)
            .args([VICTIM, &(2 * (LIMIT >> 20)).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start"))?;
        let (pid, go) = (init.id(), init.stdin.take());
        self.init = Some(init);
        write(&self.cgroup().join("cgroup.procs"), &pid.to_string())?;
        let socket = coroner_transport::connect(agent).await.map_err(failed("reach the agent from"))?;
        let request = WatchRequest {
            container_id: self.container.clone(),
            cgroup: format!("/{}/{}", self.root_name, self.container),
            init_pid: Some(pid),
            ..WatchRequest::default()
        };
        AgentClient::new(Client::new(socket))
            .watch(ttrpc::context::with_duration(Duration::from_secs(5)), &request)
            .await
            .map_err(|error| StageError::Watch(error.to_string()))?;
        // End of input lets the init run.
        drop(go);
        Ok(())
    }

    /// Ends what still runs and removes the cgroup.
    pub(super) fn clear(self) {
        drop(self);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut init) = self.init.take() {
            // An error means that it has ended already.
            init.kill().ok();
            init.wait().ok();
        }
        for path in [self.cgroup(), self.root.clone()] {
            remove_cgroup(&path);
        }
    }
}

/// A cgroup can be removed once the last process in it is reaped: the init's orphans may take a
/// moment.
fn remove_cgroup(path: &Path) {
    for _ in 0..100 {
        for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                // An error means that it has ended meanwhile.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(()) | Err(_) => return,
        }
    }
    note(format!("cannot remove {}: it is still in use", path.display()));
}

/// The process that dies: waits for the end of its input, starts a child that allocates, and exits
/// 1 when that is killed.
pub(crate) fn victim(megabytes: usize) -> ExitCode {
    const CHILD: &str = "CORONER_DEMO_CHILD";
    // Without /proc the demo works too, under the name `exe`.
    fs::write("/proc/self/comm", VICTIM).ok();
    if std::env::var_os(CHILD).is_some() {
        let blocks: Vec<Vec<u8>> = (0..megabytes).map(|at| vec![at as u8 | 1; 1 << 20]).collect();
        return ExitCode::from(u8::from(blocks.is_empty()));
    }
    let mut input = Vec::new();
    if io::stdin().read_to_end(&mut input).is_err() {
        return ExitCode::from(2);
    }
    let child = Command::new("/proc/self/exe")
        .args([VICTIM, &megabytes.to_string()])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .status();
    match child {
        Ok(status) if status.signal().is_some() => ExitCode::from(1),
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

/// Where the memory controller is, and whether it is cgroup v2.
fn hierarchy() -> Result<(PathBuf, bool), StageError> {
    let v1 = PathBuf::from("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() {
        return Ok((v1, false));
    }
    let v2 = PathBuf::from("/sys/fs/cgroup");
    let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|it| it == "memory") {
        Ok((v2, true))
    } else {
        Err(StageError::NoMemory)
    }
}

fn make(path: &Path) -> Result<(), StageError> {
    fs::create_dir(path).map_err(|source| StageError::Io { what: "make", path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), StageError> {
    fs::write(path, text).map_err(|source| StageError::Io { what: "write", path: path.to_owned(), source })
}
