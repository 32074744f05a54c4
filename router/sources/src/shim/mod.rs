//! The source `shim`: wrapped shims publish their events to it instead of containerd, and their
//! proxies send it requests. docs/operating/shims.md is its page.
//!
//! ```text
//!   shim --Forward--> service --ShimRequest--> ShimSource (one task, all state) --> envelopes
//!   proxy --Rule--->     |                       ^ watch (the kernel's notices)
//!                        +<-- holds --- the lane to containerd
//! ```

mod bundle;
mod container;
mod kills_below;
mod oom_counter;
mod pod_counter;
mod event;
mod mailbox;
mod embedded;
mod poll_schedule;
mod service;
mod unmanaged;
mod watch;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_events;
use coroner_cgroup::Hierarchy;
use coroner_proto::shim_ttrpc::create_shim;
use coroner_transport::Address;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use ttrpc::r#async::Server;
use ttrpc::asynchronous::transport::Listener;

pub use self::embedded::{EmbeddedShim, EmbeddedShimError, Exit, OomKill};
pub use self::service::ExitBarriers;
pub use self::unmanaged::{UNMANAGED, UnmanagedPod, UnmanagedPods};

use self::container::WrappedContainer;
use self::pod_counter::PodCounters;
use self::service::{ShimRequest, ShimService};
use self::watch::Watch;
use super::recovered::RecoveredSource;
use super::shutdown::Shutdown;
use crate::SourceCounts;
use crate::envelope::{Envelope, Origin};
use crate::settings::Source;
use coroner_containerd::TaskState;
use coroner_core::mode::Known;
use coroner_core::mode::Mode;
use coroner_core::signal::ContainerId;

/// Requests that wait for the source's task.
const MAILBOX: usize = 64;
/// Deleted containers remembered: a shim or a proxy retries for half a minute, and few containers
/// are deleted in that time.
const DELETED: usize = 256;
/// A shim retries an event for some 21 s. containerd is queried for an end that was not reported by
/// then.
const REPORTED_WITHIN: Duration = Duration::from_secs(25);

/// The source of the shims that connect to it.
#[derive(Debug)]
pub struct ShimSource {
    source: Source,
    /// The service manager's socket, if it opened one.
    inherited: Option<UnixListener>,
    node: String,
    envelopes: mpsc::Sender<Envelope>,
    counts: Arc<SourceCounts>,
    barriers: ExitBarriers,
    recovered: RecoveredSource,
    counted: Arc<Origin>,
    uncounted: Arc<Origin>,
    watch: Option<Watch>,
    containers: HashMap<ContainerId, WrappedContainer>,
    pods: PodCounters,
    /// The containers that were deleted last, the newest at the end: a shim may still repeat an
    /// event, or report an OOM.
    deleted: VecDeque<(ContainerId, WrappedContainer)>,
    /// When a counter is polled, or containerd is queried for a container.
    due: BTreeSet<(Instant, ContainerId)>,
    /// The query for containerd's tasks, sent for containers that are gone.
    listing: JoinSet<Option<HashMap<String, TaskState>>>,
}

impl ShimSource {
    /// A source that does not listen yet. Must be called on the runtime.
    pub fn new(
        source: Source,
        node: String,
        envelopes: mpsc::Sender<Envelope>,
        counts: Arc<SourceCounts>,
        recovered: RecoveredSource,
        barriers: ExitBarriers,
    ) -> Self {
        let origin = |counter: Option<Known>| {
            let mut known = vec![Known::ExitStatus, Known::Memory];
            known.extend(counter);
            known.extend((source.mode != Mode::Wrapped).then_some(Known::KillRequests));
            Origin::new(&source, known, None)
        };
        let watch = Hierarchy::find().map_err(|error| error.to_string());
        let watch = watch.and_then(|it| Watch::new(it).map_err(|error| error.to_string()));
        if let Err(error) = &watch {
            tracing::error!(
                source = source.name,
                error,
                "cannot count OOM kills; reporting the OOMs that shims announce"
            );
        }
        Self {
            counted: origin(Some(Known::KillCount)),
            uncounted: origin(None),
            node,
            envelopes,
            counts,
            barriers,
            recovered,
            watch: watch.ok(),
            containers: HashMap::new(),
            pods: PodCounters::default(),
            deleted: VecDeque::new(),
            due: BTreeSet::new(),
            listing: JoinSet::new(),
            inherited: None,
            source,
        }
    }

    /// The same on a socket that is already open, instead of one that it creates.
    pub fn on(self, listener: UnixListener) -> Self {
        Self { inherited: Some(listener), ..self }
    }

    /// Opens the socket.
    fn listen(&mut self) -> std::io::Result<Listener> {
        if let Some(listener) = self.inherited.take() {
            return coroner_transport::listen_inherited(listener);
        }
        let path = self.path();
        if let Some(folder) = path.parent().filter(|folder| !folder.exists())
            && let Err(error) = std::fs::create_dir(folder)
        {
            tracing::error!(source = self.source.name, folder = %folder.display(), %error, "cannot create the socket's folder");
        }
        coroner_transport::listen(&self.source.address)
    }

    fn path(&self) -> PathBuf {
        match &self.source.address {
            Address::Unix(path) => path.clone(),
            // The configuration's check refuses every other address.
            Address::Vsock { .. } | Address::Hvsock { .. } => PathBuf::new(),
        }
    }

    /// The handle of a shim that embeds the router, with containers in this namespace of
    /// containerd, and the task that serves it until the shutdown.
    pub fn embedded(
        mut self,
        namespace: String,
        mut shutdown: Shutdown,
    ) -> (EmbeddedShim, impl Future<Output = ()>) {
        let (mailbox, mut requests) = mpsc::channel(MAILBOX);
        let shim = EmbeddedShim { namespace, mailbox: mailbox.clone(), barriers: self.barriers.clone() };
        let followed = async move {
            // The router continues when the shim drops its handle.
            let _kept = mailbox;
            if !self.recover().await {
                return;
            }
            self.counts.connected(true);
            tokio::select! {
                () = self.follow(&mut requests) => {}
                _ = shutdown.requested() => {}
            }
            self.counts.connected(false);
        };
        (shim, followed)
    }

    /// Listens until the shutdown. A socket that cannot be created ends the router.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let (mailbox, mut requests) = mpsc::channel(MAILBOX);
        let service = ShimService { mode: self.source.mode, mailbox, barriers: self.barriers.clone() };
        let listener = match self.listen() {
            Ok(listener) => listener,
            Err(error) => {
                let path = self.path();
                tracing::error!(source = self.source.name, path = %path.display(), %error, "shims cannot connect");
                return;
            }
        };
        // Before the first event: it may be about one of them.
        if !self.recover().await {
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
            () = self.follow(&mut requests) => {}
            _ = shutdown.requested() => {}
        }
        self.counts.connected(false);
        server.shutdown().await.unwrap_or(());
    }

    async fn follow(&mut self, requests: &mut mpsc::Receiver<ShimRequest>) {
        loop {
            let due = self.due.first().map(|(at, _)| *at);
            let noticed = async {
                match &mut self.watch {
                    Some(watch) => watch.noticed().await,
                    None => std::future::pending().await,
                }
            };
            let alive = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.answer(request).await,
                    None => return,
                },
                noticed = noticed => self.noticed(noticed).await,
                Some(tasks) = self.listing.join_next() => self.listed(tasks.unwrap_or_default()).await,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.poll_due().await,
            };
            if !alive {
                return;
            }
        }
    }
}
