//! The source `shim`: wrapped shims publish their events here instead of at containerd, and their proxies ask here. docs/shims.md is its page.
//!
//! ```text
//!   shim --Forward--> service --Ask--> ShimSource (one task, all state) --> arrivals
//!   proxy --Rule--->     |                 ^ watch (the kernel's notices)
//!                        +<-- holds --- the lane to containerd
//! ```

mod bundle;
mod container;
mod counting;
mod event;
mod following;
mod handle;
mod looks;
mod service;
mod watch;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_events;
use coroner_cgroup::Hierarchy;
use coroner_proto::address::Address;
use coroner_proto::shim_ttrpc::create_shim;
use coroner_proto::transport;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use ttrpc::r#async::Server;

pub use self::handle::{Exit, Handle, HandleError};
pub use self::service::Asked;

use self::container::Container;
use self::service::{Ask, Service};
use self::watch::Watch;
use super::orders::Orders;
use super::past::History;
use crate::arrival::{Arrival, Origin};
use crate::case::Known;
use crate::config::{Mode, Source};
use crate::counts::SourceCounts;
use crate::identity::TaskState;
use crate::signal::ContainerId;

/// Questions that wait for the source's task.
const ASKS: usize = 64;
/// Deleted containers remembered: a shim or a proxy that could not tell something tries for half a minute, and few are deleted in that time.
const DELETED: usize = 256;
/// A shim tries for some 21 s to tell what it has to tell; what has ended and was not told by then is asked for at containerd.
const TOLD_WITHIN: Duration = Duration::from_secs(25);

/// Follows the shims that connect.
#[derive(Debug)]
pub struct ShimSource {
    source: Source,
    node: String,
    arrivals: mpsc::Sender<Arrival>,
    counts: Arc<SourceCounts>,
    asked: Asked,
    history: History,
    counted: Arc<Origin>,
    uncounted: Arc<Origin>,
    watch: Option<Watch>,
    containers: HashMap<ContainerId, Container>,
    /// Those that were deleted last, the newest at the end: a shim may still tell what was told, or an OOM that was not.
    deleted: VecDeque<(ContainerId, Container)>,
    /// When a counter is looked at, or a container looked for.
    due: BTreeSet<(Instant, ContainerId)>,
    /// containerd's tasks, asked for about containers that are gone.
    listing: JoinSet<Option<HashMap<String, TaskState>>>,
}

impl ShimSource {
    /// A source that does not listen yet. To be called on the runtime.
    pub(crate) fn new(
        source: Source,
        node: String,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<SourceCounts>,
        history: History,
        asked: Asked,
    ) -> Self {
        let origin = |counter: Option<Known>| {
            let mut known = vec![Known::ExitStatus, Known::Memory];
            known.extend(counter);
            known.extend((source.mode != Mode::Wrapped).then_some(Known::KillRequests));
            Arc::new(Origin {
                source: source.name.clone(),
                mode: source.mode,
                known,
                guest: None,
                shim: true,
            })
        };
        let watch = Hierarchy::find().map_err(|error| error.to_string());
        let watch = watch.and_then(|it| Watch::new(it).map_err(|error| error.to_string()));
        if let Err(error) = &watch {
            tracing::error!(
                source = source.name,
                error,
                "OOM kills are not counted: what shims announce is believed"
            );
        }
        Self {
            counted: origin(Some(Known::KillCount)),
            uncounted: origin(None),
            node,
            arrivals,
            counts,
            asked,
            history,
            watch: watch.ok(),
            containers: HashMap::new(),
            deleted: VecDeque::new(),
            due: BTreeSet::new(),
            listing: JoinSet::new(),
            source,
        }
    }

    fn path(&self) -> PathBuf {
        match &self.source.address {
            Address::Unix(path) => path.clone(),
            // The configuration's check lets no other pass.
            Address::Vsock { .. } | Address::Hvsock { .. } => PathBuf::new(),
        }
    }

    /// Follows the shim that embeds the router, whose containers are in this namespace of containerd, until told to stop.
    pub(crate) fn embedded(
        mut self,
        namespace: String,
        mut orders: Orders,
    ) -> (Handle, impl Future<Output = ()>) {
        let (asks, mut asked) = mpsc::channel(ASKS);
        let handle = Handle { namespace, asks: asks.clone(), asked: self.asked.clone() };
        let followed = async move {
            // A shim that drops its handle has nothing more to tell, which does not end the router.
            let _kept = asks;
            if !self.take_up().await {
                return;
            }
            self.counts.connected(true);
            tokio::select! {
                () = self.follow(&mut asked) => {}
                _ = orders.heard() => {}
            }
            self.counts.connected(false);
        };
        (handle, followed)
    }

    /// Listens until told to stop. A socket that cannot be made ends the router.
    pub async fn run(mut self, mut orders: Orders) {
        let (asks, mut asked) = mpsc::channel(ASKS);
        let service = Service { mode: self.source.mode, asks, asked: self.asked.clone() };
        let path = self.path();
        if let Some(folder) = path.parent().filter(|folder| !folder.exists())
            && let Err(error) = std::fs::create_dir(folder)
        {
            tracing::error!(source = self.source.name, folder = %folder.display(), %error, "the socket's folder cannot be made");
        }
        let listener = match transport::listen(&self.source.address) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(source = self.source.name, path = %path.display(), %error, "shims cannot connect");
                return;
            }
        };
        // Before the first shim speaks: it may speak of them.
        if !self.take_up().await {
            return;
        }
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(create_events(Arc::new(service.clone())))
            .register_service(create_shim(Arc::new(service)));
        if let Err(error) = server.start().await {
            tracing::error!(source = self.source.name, %error, "shims cannot connect");
            return;
        }
        self.counts.links.one();
        self.counts.connected(true);
        tokio::select! {
            () = self.follow(&mut asked) => {}
            _ = orders.heard() => {}
        }
        self.counts.connected(false);
        server.shutdown().await.unwrap_or(());
    }

    async fn follow(&mut self, asked: &mut mpsc::Receiver<Ask>) {
        loop {
            let due = self.due.first().map(|(at, _)| *at);
            let noticed = async {
                match &mut self.watch {
                    Some(watch) => watch.noticed().await,
                    None => std::future::pending().await,
                }
            };
            let alive = tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => self.answer(ask).await,
                    None => return,
                },
                noticed = noticed => self.noticed(noticed).await,
                Some(tasks) = self.listing.join_next() => self.listed(tasks.unwrap_or_default()).await,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tend().await,
            };
            if !alive {
                return;
            }
        }
    }
}
