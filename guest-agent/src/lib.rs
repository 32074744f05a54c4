//! Tells which containers were OOM-killed and how they ended, from the kernel's own word.
//!
//! ```text
//!   cgroups --inotify--> discover ---+
//!   OOM eventfd, memory.events ------+--> watcher --> state --> server --ttrpc--> router
//!   process events, pidfds ----------+   (one task)  (pure)  kata       Kata's runtimes
//!   dead children, before reaped ----+
//!   PSI triggers, memory.high -------+
//!   /dev/kmsg: who the victim was ---+
//! ```
//!
//! In the order a signal meets them: `names` and `discover` find containers; `cgroup`, `kmsg`, `connector`, `child` and `process`
//! read what the kernel says; `watcher` waits for all of it, and with `news`, `oom`, `exit`, `reap`, `pressure`, `arming` and `request` makes `state` of it, with the cursors in `polls`;
//! `server` and `kata` let readers follow that state, `links` each reader on its own. `placement` says what can be known here, `command` is
//! the program it may be the reaper of. [`run`] ties them together and owns the tasks.

mod arming;
mod check;
mod child;
mod command;
mod connector;
mod discover;
mod exit;
mod kata;
mod kmsg;
mod links;
pub mod log;
mod looks;
mod names;
mod news;
mod oom;
mod packed;
mod placement;
mod polls;
mod pressure;
mod process;
mod reap;
mod request;
mod server;
mod shared;
mod signals;
mod state;
mod watcher;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::address::Address;
use coroner_proto::agent::HelloResponse;
use coroner_proto::agent_ttrpc::create_agent;
use coroner_proto::kata_ttrpc::{create_agent_service, create_health};
use coroner_proto::transport;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

pub use crate::check::{Capability, Findings, Found, check};
pub use crate::command::Exit;
pub use crate::names::{DEFAULT_ROOTS, RootError};
pub use crate::placement::Placement;
pub use crate::pressure::{Rule, RuleError, Trigger};
pub use crate::signals::Signals;
use coroner_cgroup as cgroup;
pub use coroner_cgroup::{Hierarchy, HierarchyError, Version};

use crate::command::Running;
use crate::connector::Connector;
use crate::discover::Tree;
use crate::kata::{Consumer, Pulse};
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::names::Root;
use crate::server::Service;
use crate::shared::Shared;
use crate::watcher::{Means, Watcher};

/// Whether this process is the machine's init.
pub fn is_init() -> bool {
    placement::is_init()
}

/// Questions to the watcher that may wait: it answers each in some microseconds, and who asks waits for the answer.
const QUESTIONS: usize = 16;
/// For calls in flight and the watcher to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What to watch and where to serve it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where readers connect to.
    pub listen: Vec<Address>,
    /// Where containers are: paths below the cgroup hierarchy's root, each name of which may end in `*`.
    pub roots: Vec<String>,
    /// The mount of the hierarchy with the memory controller; found when none.
    pub cgroup_mount: Option<PathBuf>,
    /// What pressure to watch; `[Trigger::DEFAULT]` is meant for a start.
    pub pressure: Vec<Rule>,
    /// A program to start once it listens, and to be the reaper of: itself, its arguments. At most one such agent a process: it takes
    /// in every child of the process.
    pub command: Vec<OsString>,
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to watch.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// A root is no pattern.
    #[error(transparent)]
    Root(#[from] RootError),
    /// An address cannot be served.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The server does not start.
    #[error("cannot serve: {0}")]
    Serve(#[source] ttrpc::Error),
    /// The kernel gives no inotify or epoll instance.
    #[error("cannot watch: {0}")]
    Watch(#[source] io::Error),
    /// The command does not start.
    #[error("cannot start {}: {source}", .command.display())]
    Command {
        /// Its first word.
        command: OsString,
        /// Why.
        source: io::Error,
    },
    /// The watcher ended by itself.
    #[error("the watcher ended early: {0}")]
    Ended(String),
}

/// Serves until `shutdown`, or until the command ends, and says how that did. Calls `ready` once it listens, everything that is there is
/// watched and the command runs.
///
/// Kills from before are no signals. Runs on the caller's runtime, a single thread included.
pub async fn run(
    options: Options,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<Option<Exit>, Error> {
    let hierarchy = hierarchy(options.cgroup_mount)?;
    let roots = options.roots.iter().map(|root| Root::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let tree = Tree::new(hierarchy.clone(), roots).map_err(|error| Error::Watch(error.into()))?;
    let connector = Connector::open();
    let reaps = placement::is_init() || !options.command.is_empty();
    let placement = Placement::of(reaps, connector.as_ref().map(drop));
    let connector = connector.map_err(|error| log!(Warn, "no process events here", error = error)).ok();
    log!(Info, "placed", placement = placement, so = placement.meaning());
    let kmsg = Kmsg::open().map_err(|error| log!(Warn, "victims are not known here", error = error)).ok();
    let hello = hello(&hierarchy, placement, kmsg.is_some());
    let shared = Arc::new(Shared::new());
    let pressure = options.pressure;
    let means = Means { hierarchy: hierarchy.clone(), tree, connector, kmsg, placement, pressure };
    let watcher = Watcher::start(means, Arc::clone(&shared)).map_err(Error::Watch)?;

    let (requests, asked) = mpsc::channel(QUESTIONS);
    let waiting = Arc::new(Semaphore::new(server::MAX_WAITING));
    let service = Service::new(Arc::clone(&shared), hierarchy, hello, requests.clone(), Arc::clone(&waiting));
    let service = Arc::new(service);
    let mut tasks = JoinSet::new();
    for address in &options.listen {
        let incoming = transport::incoming(address)
            .map_err(|source| Error::Listen { address: address.clone(), source })?;
        let (agent, shared) = (service.clone(), Arc::clone(&shared));
        let (waiting, told) = (Arc::clone(&waiting), shared.told());
        let services = move || {
            let agent: Arc<dyn coroner_proto::agent_ttrpc::Agent + Send + Sync> = agent.clone();
            let consumer = Consumer::new(Arc::clone(&shared), Arc::clone(&waiting));
            let mut services = create_agent(agent);
            services.extend(create_agent_service(Arc::new(consumer)));
            services.extend(create_health(Arc::new(Pulse)));
            services
        };
        tasks.spawn(async move {
            links::serve(incoming, services, told).await;
            Ok(())
        });
        log!(Info, "listening", address = address);
    }
    drop(service);
    tasks.spawn(watcher.run(asked));
    let mut command = Running::start(&options.command, &requests).await?;
    drop(requests);
    ready();

    let ended = tokio::select! {
        () = shutdown => Ok(None),
        exit = command.ended() => Ok(Some(exit)),
        Some(ended) = tasks.join_next() => Err(Error::Ended(match ended {
            Ok(Ok(())) => "nobody can ask it any more".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    };
    let ended = match ended {
        Ok(None) => Ok(command.end().await),
        other => other,
    };
    shared.stop();
    let stopped = tokio::time::timeout(LAST_WORDS, async { while tasks.join_next().await.is_some() {} });
    if stopped.await.is_err() {
        log!(Warn, "calls were cut off at the stop");
    }
    for address in &options.listen {
        if let Address::Unix(path) = address {
            std::fs::remove_file(path).ok();
        }
    }
    ended
}

fn hierarchy(mount: Option<PathBuf>) -> Result<Hierarchy, HierarchyError> {
    mount.map_or_else(Hierarchy::find, Hierarchy::at)
}

fn hello(hierarchy: &Hierarchy, placement: Placement, victims: bool) -> HelloResponse {
    // A random number of the kernel's own making, new at each read, and one that is new at each boot.
    let random = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/random/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let exits = placement != Placement::Namespaced;
    let optional = [(exits, "exit-status"), (victims, "victim"), (hierarchy.has_pressure(), "pressure")];
    let capabilities = ["kill-count", "memory"].into_iter();
    let capabilities =
        capabilities.chain(optional.into_iter().filter(|(there, _)| *there).map(|(_, name)| name));
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
