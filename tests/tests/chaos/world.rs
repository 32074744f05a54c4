//! What breaks and what must not: containerd, agents, the router, and the links between them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coroner_tests::agent::Agent;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::router::Router;
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until_quiet;
use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::bare::Root;
use crate::wire::Ledger;
use crate::{link, wire};

/// All is quiet once nothing went by for so long: the longest pause between two tries, and CRI's
/// own.
const QUIET: Duration = Duration::from_secs(8);
/// Of the file system that the journal is on.
const STATE: &str = "size=24m";

/// How a container was to end, and what is known to have been done.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) id: String,
    pub(crate) action: &'static str,
    pub(crate) killed: bool,
    pub(crate) status: u32,
    /// A pod's container, to be queried at CRI; without a confirmed start by containerd nothing is
    /// known of it.
    pub(crate) container: Option<Container>,
}

/// All of it.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) cuts: broadcast::Sender<()>,
    pub(crate) up: watch::Sender<bool>,
    pub(crate) lives: Mutex<Vec<Life>>,
    /// When the router or containerd died, and when it was back.
    pub(crate) deaths: Mutex<Vec<(Instant, Instant)>>,
    pub(crate) router: tokio::sync::Mutex<Router>,
    pub(crate) containerd: tokio::sync::Mutex<Containerd>,
    pub(crate) cri: Cri,
    pub(crate) pod: Pod,
    pub(crate) root: Root,
    over: AtomicBool,
    state: PathBuf,
    _agents: [Agent; 2],
    _links: JoinSet<()>,
}

impl World {
    pub(crate) async fn start() -> Result<Rc<Self>> {
        let containerd = Containerd::start().await?;
        let mut cri = containerd.cri().await?;
        let pod = cri.run_pod(&containerd, "chaos").await?;
        let root = Root::new()?;
        let agents = [Agent::start(containerd.cgroup()).await?, Agent::start(root.name()).await?];
        let scratch = Scratch::new()?;
        let (ledger, cuts) = (Ledger::default(), broadcast::Sender::new(16));
        let mut links = JoinSet::new();
        let mut events = containerd.socket().into_os_string();
        events.push(".ttrpc");
        links.spawn(wire::serve(scratch.path("wire.sock"), events.into(), ledger.clone()));
        let agent = PathBuf::from(agents[1].address().trim_start_matches("unix://"));
        links.spawn(link::serve(scratch.path("link.sock"), agent, cuts.clone()));
        // A FIFO without a reader: any write there hangs.
        mkfifoat(CWD, scratch.path("hangs"), Mode::RWXU)?;
        let state = scratch.path("journal");
        fs::create_dir(&state)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", STATE, "none"]).arg(&state).status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        let toml = config(&containerd, &agents[0]);
        let router = Router::start_in(scratch, &toml).await?;
        Ok(Rc::new(Self {
            ledger,
            cuts,
            up: watch::Sender::new(true),
            lives: Mutex::default(),
            deaths: Mutex::default(),
            router: tokio::sync::Mutex::new(router),
            containerd: tokio::sync::Mutex::new(containerd),
            cri,
            pod,
            root,
            over: AtomicBool::new(false),
            state,
            _agents: agents,
            _links: links,
        }))
    }

    /// No more containers are started.
    pub(crate) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// A part that died then is back.
    pub(crate) fn back(&self, died: Instant) {
        self.deaths.lock().unwrap().push((died, Instant::now()));
    }

    /// Waits until nothing is published any more.
    pub(crate) async fn wait_quiet(&self) {
        until_quiet(QUIET, async || Ok(self.ledger.all().len())).await.unwrap();
    }

    /// Leaves no room where the journal is.
    pub(crate) fn fill(&self) {
        // The file system is smaller than that.
        drop(fs::write(self.state.join("filler"), vec![0; 64 << 20]));
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.state.join("filler")).unwrap();
    }
}

fn config(containerd: &Containerd, agent: &Agent) -> String {
    format!(
        r#"
        node = "chaos"
        [policies]
        directory = "@DIR@/policies"
        cache = "@DIR@/cache"
        [control]
        socket = "@DIR@/control.sock"
        [journal]
        directory = "@DIR@/journal"
        size = "16MiB"
        [containerd]
        address = "{containerd}"
        ttrpc_address = "@DIR@/wire.sock"
        [[source]]
        name = "pods"
        type = "agent"
        address = "{agent}"
        mode = "beside"
        [[source]]
        name = "bare"
        type = "agent"
        address = "unix://@DIR@/link.sock"
        mode = "sole"
        [[sink]]
        name = "containerd"
        type = "containerd"
        [[sink]]
        name = "audit"
        type = "jsonl"
        path = "@DIR@/audit.jsonl"
        [[sink]]
        name = "hangs"
        type = "jsonl"
        path = "@DIR@/hangs"
        "#,
        containerd = containerd.socket().display(),
        agent = agent.address(),
    )
}
