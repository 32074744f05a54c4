//! Tells which containers were OOM-killed and how they ended, from the kernel's own word.
//!
//! ```text
//!   cgroups --inotify--> discover ---+
//!   OOM eventfd, memory.events ------+--> watcher --> state --> server --ttrpc--> router
//!   process events, pidfds ----------+   (one task)  (pure)
//!   /dev/kmsg: who the victim was ---+
//! ```
//!
//! In the order a signal meets them: `names` and `discover` find containers; `cgroup`, `kmsg`, `connector` and `process`
//! read what the kernel says; `watcher` waits for all of it, and with `oom`, `exit` and `request` makes `state` of it;
//! `server` lets readers follow that state. [`run`] ties them together and owns the tasks.

mod cgroup;
mod check;
mod connector;
mod discover;
mod exit;
mod kmsg;
pub mod log;
mod looks;
mod names;
mod oom;
mod process;
mod ready;
mod request;
mod server;
mod shared;
mod state;
mod watcher;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::address::Address;
use coroner_proto::agent::HelloResponse;
use coroner_proto::agent_ttrpc::create_agent;
use coroner_proto::transport;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use ttrpc::asynchronous::Server;

pub use crate::cgroup::{Hierarchy, HierarchyError, Version};
pub use crate::check::{Capability, Findings, Found, check};
pub use crate::names::{DEFAULT_ROOTS, RootError};

use crate::connector::Connector;
use crate::discover::Tree;
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::names::Root;
use crate::server::Service;
use crate::shared::Shared;
use crate::watcher::Watcher;

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
    /// The watcher ended by itself.
    #[error("the watcher ended early: {0}")]
    Ended(String),
}

/// Serves until `shutdown`; calls `ready` once it listens and everything that is there is watched.
///
/// Kills from before are no signals. Runs on the caller's runtime, a single thread included.
pub async fn run(
    options: Options,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let hierarchy = hierarchy(options.cgroup_mount)?;
    let roots = options.roots.iter().map(|root| Root::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let tree = Tree::new(hierarchy.clone(), roots).map_err(|error| Error::Watch(error.into()))?;
    let connector =
        Connector::open().map_err(|error| log!(Warn, "exits have no status here", error = error)).ok();
    let kmsg = Kmsg::open().map_err(|error| log!(Warn, "victims are not known here", error = error)).ok();
    let hello = hello(&hierarchy, connector.is_some(), kmsg.is_some());
    let shared = Arc::new(Shared::new());
    let watcher = Watcher::start(hierarchy.clone(), Arc::clone(&shared), tree, connector, kmsg);
    let watcher = watcher.map_err(Error::Watch)?;

    let (requests, asked) = mpsc::channel(QUESTIONS);
    let service = Arc::new(Service::new(Arc::clone(&shared), hierarchy, hello, requests));
    let mut servers = Vec::with_capacity(options.listen.len());
    for address in &options.listen {
        let listener = transport::listen(address)
            .map_err(|source| Error::Listen { address: address.clone(), source })?;
        let service: Arc<dyn coroner_proto::agent_ttrpc::Agent + Send + Sync> = service.clone();
        let mut server = Server::new().add_listener(listener).register_service(create_agent(service));
        server.start().await.map_err(Error::Serve)?;
        log!(Info, "listening", address = address);
        servers.push(server);
    }
    drop(service);
    let mut tasks = JoinSet::new();
    tasks.spawn(watcher.run(asked));
    ready();

    let ended = tokio::select! {
        () = shutdown => Ok(()),
        Some(ended) = tasks.join_next() => Err(Error::Ended(match ended {
            Ok(Ok(())) => "nobody can ask it any more".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    };
    shared.stop();
    let stopped = tokio::time::timeout(LAST_WORDS, async {
        for server in &mut servers {
            // It ends as its connections do; what fails here is over anyway.
            server.shutdown().await.ok();
        }
        servers.clear();
        while tasks.join_next().await.is_some() {}
    });
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

fn hello(hierarchy: &Hierarchy, exits: bool, victims: bool) -> HelloResponse {
    // A random number of the kernel's own making, new at each read, and one that is new at each boot.
    let random = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/random/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let optional = [(exits, "exit-status"), (victims, "victim")];
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
        ..HelloResponse::default()
    }
}
