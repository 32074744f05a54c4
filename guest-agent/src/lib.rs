//! Reports OOM kills, exits and pressure of containers from what the kernel exposes.
//!
//! ```text
//!   cgroups --inotify--> cgroup_tree -+
//!   OOM eventfd, memory.events -------+--> watcher --> state --> server --ttrpc--> router
//!   process events, pidfds -----------+   (one task)  (pure)     kata   --ttrpc--> Kata's runtimes
//!   zombies, before they are reaped --+
//!   PSI triggers, memory.high --------+
//!   /dev/kmsg, tracefs: the victims --+
//!   tracefs: signals and their senders+
//! ```
//!
//! In the order a signal meets them: `cgroup_tree` discovers containers;
//! `coroner-cgroup`, `kmsg`, `oom_report`, `trace`, `oom_trace`, `signal_trace`, `connector`,
//! `zombies` and `process` read the kernel; `watcher` waits for all of them, keeps the last signals
//! in `sent_signals` and the last runtimes in `seen_runtimes`, states what ended a process by
//! `cause`, and updates `state`, with the cursors of `kata_cursors`, and `evidence`; `server` and
//! `kata` serve that state, `connections` accepts each reader. `placement` decides what can be
//! known on this machine, `command` is the program the agent starts and reaps. [`run`] assembles
//! them and owns the tasks.

mod cause;
mod cgroup_tree;
mod check;
mod command;
mod connections;
mod connector;
mod encoded_signal;
mod evidence;
mod kata;
mod kata_cursors;
mod kmsg;
pub mod log;
mod memory_history;
mod oom_report;
mod oom_trace;
mod placement;
mod pressure;
mod process;
mod seen_runtimes;
mod sent_signals;
mod server;
mod shared_state;
mod signal_trace;
mod state;
mod trace;
mod unix_signals;
mod watcher;
mod zombies;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::HelloResponse;
use coroner_proto::agent_ttrpc::create_agent;
use coroner_proto::kata_ttrpc::{create_agent_service, create_health};
use coroner_transport::Address;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

pub use crate::cgroup::roots::{DEFAULT_ROOTS, RootPatternError};
pub use crate::check::{Capability, Findings, FoundContainer, check};
pub use crate::command::CommandExit;
pub use crate::evidence::EvidenceDetail;
pub use crate::placement::Placement;
pub use crate::pressure::{PressureRule, PressureRuleError, PsiTrigger};
pub use crate::unix_signals::UnixSignals;
use coroner_cgroup as cgroup;
pub use coroner_cgroup::{Hierarchy, HierarchyError, Version};

use crate::cgroup::roots::RootPattern;
use crate::cgroup_tree::CgroupTree;
use crate::command::RunningCommand;
use crate::connector::Connector;
use crate::kata::{HealthService, KataService};
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::oom_trace::OomTrace;
use crate::server::Service;
use crate::shared_state::SharedState;
use crate::signal_trace::SignalTrace;
use crate::watcher::{KernelSources, Watcher};

/// Whether this process is the machine's init.
pub fn is_init() -> bool {
    placement::is_init()
}

/// Queue size of requests to the watcher. It answers each in some microseconds, and the caller
/// waits for the answer, so a full queue is back-pressure.
const REQUEST_QUEUE: usize = 16;
/// Time for calls in flight and the watcher to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// What to watch, and where to serve.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Addresses to listen on.
    pub listen: Vec<Address>,
    /// Where containers are: paths below the cgroup hierarchy's root. Their names may end in `*`.
    pub roots: Vec<String>,
    /// Mount of the hierarchy with the memory controller; none searches for it.
    pub cgroup_mount: Option<PathBuf>,
    /// Pressure triggers; [`PsiTrigger::DEFAULT`] is a good start.
    pub pressure: Vec<PressureRule>,
    /// A program and its arguments, started once the agent listens and reaped by it. At most one
    /// agent with a command per process: it reaps every child of the process.
    pub command: Vec<OsString>,
    /// How much evidence of a kill is kept.
    pub evidence: EvidenceDetail,
}

/// Why the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable cgroup hierarchy.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// A root is not a valid pattern.
    #[error(transparent)]
    RootPattern(#[from] RootPatternError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: Address,
        /// The error of bind or listen.
        source: io::Error,
    },
    /// The server does not start.
    #[error("cannot serve: {0}")]
    Serve(#[source] ttrpc::Error),
    /// The kernel refused an inotify or epoll instance.
    #[error("cannot create an inotify or epoll instance: {0}")]
    Watch(#[source] io::Error),
    /// The command does not start.
    #[error("cannot start {}: {source}", .command.display())]
    Command {
        /// The program.
        command: OsString,
        /// The error of its start.
        source: io::Error,
    },
    /// The watcher ended unexpectedly.
    #[error("the watcher ended unexpectedly: {0}")]
    Ended(String),
}

/// Serves until `shutdown` resolves or the command ends, and returns the command's exit. Calls
/// `ready` once it listens, watches the existing containers and the command runs.
///
/// Kills from before the start are not signals. A current-thread runtime is enough.
pub async fn run(
    options: Options,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<Option<CommandExit>, Error> {
    let hierarchy = hierarchy(options.cgroup_mount)?;
    let roots = options.roots.iter().map(|root| RootPattern::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let tree = CgroupTree::new(hierarchy.clone(), roots).map_err(|error| Error::Watch(error.into()))?;
    let connector = Connector::open();
    let reaps = placement::is_init() || !options.command.is_empty();
    let placement = Placement::of(reaps, connector.as_ref().map(drop));
    let connector =
        connector.map_err(|error| log!(Warn, "process events are not available", error = error)).ok();
    log!(Info, "placement", placement = placement, meaning = placement.meaning());
    let kmsg = open_kmsg();
    let traces = open_traces(connector.is_some());
    let hello = hello(&hierarchy, placement, kmsg.is_some() || traces.0.is_some(), traces.1.is_some());
    let shared = Arc::new(SharedState::new());
    let sources = KernelSources {
        hierarchy: hierarchy.clone(),
        tree,
        connector,
        kmsg,
        traces,
        placement,
        pressure: options.pressure,
        evidence: options.evidence,
    };
    let watcher = Watcher::start(sources, Arc::clone(&shared)).map_err(Error::Watch)?;

    let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
    let waiting = Arc::new(Semaphore::new(server::MAX_WAITING));
    let service = Service::new(Arc::clone(&shared), hierarchy, hello, requests.clone(), Arc::clone(&waiting));
    let service = Arc::new(service);
    let mut tasks = JoinSet::new();
    for address in &options.listen {
        listen(address, &service, &shared, &waiting, &mut tasks)?;
    }
    drop(service);
    tasks.spawn(watcher.run(queue));
    let mut command = RunningCommand::start(&options.command, &requests).await?;
    drop(requests);
    ready();

    let ended = tokio::select! {
        () = shutdown => Ok(None),
        exit = command.ended() => Ok(Some(exit)),
        Some(ended) = tasks.join_next() => Err(Error::Ended(match ended {
            Ok(Ok(())) => "its request queue was closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    };
    let ended = if let Ok(None) = ended { Ok(command.end().await) } else { ended };
    shared.stop();
    drain(tasks, &options.listen).await;
    ended
}

fn open_kmsg() -> Option<Kmsg> {
    let unavailable =
        |error| log!(Warn, "the kernel log is not available: cannot read /dev/kmsg", error = error);
    Kmsg::open().map_err(unavailable).ok()
}

/// The pids of the traces are the initial namespace's, as those of the process events are.
fn open_traces(has_connector: bool) -> (Option<OomTrace>, Option<SignalTrace>) {
    let unavailable = |error| log!(Info, "tracepoints are not available", error = error);
    let oom_trace = has_connector.then(OomTrace::open).and_then(|it| it.map_err(unavailable).ok());
    let signal_trace =
        oom_trace.is_some().then(SignalTrace::open).and_then(|it| it.map_err(unavailable).ok());
    (oom_trace, signal_trace)
}

/// Starts the server of one address.
fn listen(
    address: &Address,
    service: &Arc<Service>,
    shared: &Arc<SharedState>,
    waiting: &Arc<Semaphore>,
    tasks: &mut JoinSet<io::Result<()>>,
) -> Result<(), Error> {
    let incoming = coroner_transport::incoming(address)
        .map_err(|source| Error::Listen { address: address.clone(), source })?;
    let (agent, shared) = (Arc::clone(service), Arc::clone(shared));
    let (waiting, progress) = (Arc::clone(waiting), shared.progress());
    let services = move || {
        let agent: Arc<dyn coroner_proto::agent_ttrpc::Agent + Send + Sync> = agent.clone();
        let consumer = KataService::new(Arc::clone(&shared), Arc::clone(&waiting));
        let mut services = create_agent(agent);
        services.extend(create_agent_service(Arc::new(consumer)));
        services.extend(create_health(Arc::new(HealthService)));
        services
    };
    tasks.spawn(async move {
        connections::serve(incoming, services, progress).await;
        Ok(())
    });
    log!(Info, "listening", address = address);
    Ok(())
}

/// Waits for the tasks up to [`SHUTDOWN_TIMEOUT`], and removes the sockets.
async fn drain(mut tasks: JoinSet<io::Result<()>>, addresses: &[Address]) {
    let stopped =
        tokio::time::timeout(SHUTDOWN_TIMEOUT, async { while tasks.join_next().await.is_some() {} });
    if stopped.await.is_err() {
        log!(Warn, "calls in flight were cancelled at shutdown");
    }
    for address in addresses {
        if let Address::Unix(path) = address {
            std::fs::remove_file(path).ok();
        }
    }
}

fn hierarchy(mount: Option<PathBuf>) -> Result<Hierarchy, HierarchyError> {
    mount.map_or_else(Hierarchy::find, Hierarchy::at)
}

fn hello(hierarchy: &Hierarchy, placement: Placement, victims: bool, causes: bool) -> HelloResponse {
    // `uuid` is new at each read, `boot_id` at each boot.
    let random = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/random/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let exits = placement != Placement::Namespaced;
    let optional = [
        (exits, "exit-status"),
        (victims, "victim"),
        (causes, "cause"),
        (hierarchy.has_pressure(), "pressure"),
    ];
    let capabilities = ["kill-count", "memory"].into_iter();
    let capabilities =
        capabilities.chain(optional.into_iter().filter(|(available, _)| *available).map(|(_, name)| name));
    HelloResponse {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: random("boot_id"),
        stream_id: random("uuid"),
        capabilities: capabilities.map(str::to_owned).collect(),
        cgroup_version: match hierarchy.version() {
            Version::V1 => 1,
            Version::V2 => 2,
        },
        placement: placement.name().to_owned(),
        ..HelloResponse::default()
    }
}
