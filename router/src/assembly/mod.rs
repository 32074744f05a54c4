//! Assembles the router: starts its tasks, and continues with what [`recovery`] finds in the
//! journal.

mod error;
mod lanes;
pub(crate) mod recovery;
mod servers;
mod sockets;
mod tasks;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use self::error::RunError;
pub use self::sockets::InheritedSockets;

use self::tasks::Tasks;
use crate::config::{Config, Source};
use crate::counts::Counts;
use crate::delivery::{Delivery, LifecycleLane, UnruledSignal};
use crate::guests::{GuestClient, GuestManager};
use crate::intake::{Intake, IntakeRecovery, WorkerTask, shard};
use crate::node_watch::{Comparison, NodeWatch};
use crate::source_factory::SourceFactory;
use crate::worker::{self, Worker, WorkerOutput};
use coroner_containerd::Identities;
use coroner_containerd::holds::Holds;
use coroner_core::audit::{Record, Recovery};
use coroner_journal::{Journal, Recovered};
use coroner_policy::{ActiveChain, Host, Outside, PolicyClient, PolicyManager};
use coroner_sinks::{Fanout, Records};
use coroner_sources::envelope::{Envelope, unix_ms};
use coroner_sources::ownership::Registered;
use coroner_sources::shim::{EmbeddedShim, UnmanagedPods};
use coroner_sources::{FinalCounters, RecoveredSources};

/// Channel capacity between two stages. Small: what waits here has no visible order, and
/// back-pressure keeps the rest in the sources.
const STAGE: usize = 256;
/// Drain timeout: how long a graceful shutdown waits for deliveries.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Chain workers: rulings take microseconds, more threads would only wait.
const MAX_WORKERS: usize = 4;

/// A running router, by its parts.
#[derive(Debug)]
pub struct Assembly {
    tasks: Tasks,
    /// `None` once the router drains.
    sources: Option<SourceFactory>,
    records: Records,
    workers: Vec<mpsc::WeakSender<WorkerTask>>,
    policies: Option<PolicyClient>,
    guests: Option<GuestClient>,
    registered: Registered,
    active_chain: ActiveChain,
    counts: Arc<Counts>,
    holds: Holds,
}

impl Assembly {
    /// Starts everything the configuration names. Must be called on the runtime.
    pub fn serving(config: &Config) -> Result<Self, RunError> {
        Self::serving_on(config, InheritedSockets::default())
    }

    /// The same with sockets that are already open.
    pub fn serving_on(config: &Config, mut sockets: InheritedSockets) -> Result<Self, RunError> {
        let mut assembly = Self::start(config)?;
        let listeners: Vec<_> = config.sources.iter().map(|it| sockets.take_for_source(it)).collect();
        let control = config.control.as_ref().and_then(|path| sockets.take_control(path));
        for (path, socket) in sockets.unused() {
            assembly.add("unused socket".to_owned(), sockets::refuse(socket, assembly.stopped()));
            tracing::warn!(
                path = %path.display(),
                "the service manager passed a socket that has no use: it is neither the control \
                 socket nor the address of a source of type \"shim\""
            );
        }
        assembly.serve(config, control)?;
        let watch = NodeWatch::new(config, &assembly.counts);
        for pod in watch.unmanaged() {
            tracing::warn!(
                pod.id,
                pod.pod,
                pod.namespace,
                pod.because,
                "unmanaged: this pod started without the router"
            );
        }
        if let Some(cost) = watch.without_agent() {
            tracing::warn!(cost, "degraded: the configuration has no agent of this node");
        }
        if let Some(comparison) = Comparison::of(config, &assembly.counts) {
            assembly.add("comparison".to_owned(), comparison.run(assembly.stopped()));
        }
        for (source, listener) in config.sources.iter().zip(listeners) {
            match listener {
                Some(listener) => assembly.follow_on(source, listener),
                None => assembly.follow(source),
            }
        }
        Ok(assembly)
    }

    /// Follows the guests, and serves the control socket and the metrics address.
    pub fn serve(&mut self, config: &Config, passed: Option<UnixListener>) -> Result<(), RunError> {
        self.follow_guests(config);
        self.control(config, passed)?;
        self.metrics(config)
    }

    /// Starts everything except the sources, with the configured policies, and follows their
    /// directory.
    pub fn start(config: &Config) -> Result<Self, RunError> {
        let host = Arc::new(Host::new(config.policies.clone())?);
        let manager = PolicyManager::start(Arc::clone(&host));
        let mut assembly = Self::with_chain(config, &host, &manager.active_chain())?;
        let (policies, requests) = PolicyClient::channel();
        let (records, workers) = (assembly.records.clone(), assembly.workers.clone());
        let sources = config.sources.iter().map(|source| (source.name.clone(), source.mode.knowable()));
        let outside = Outside {
            record: Box::new(move |chain| records.record(Record::Chain(chain))),
            // A busy worker checks by itself; a worker that has ended needs no wake-up.
            wake: Box::new(move || workers.iter().for_each(|it| it.upgrade().map_or((), wake))),
            sources: sources.collect(),
        };
        let (stop, sender) = (assembly.stopped(), policies.clone());
        assembly
            .tasks
            .add_thread("policies".to_owned(), move || manager.run(&sender, requests, outside, stop));
        assembly.policies = Some(policies);
        Ok(assembly)
    }

    /// Starts everything except the sources, with a chain that the caller swaps. Without policies
    /// in it every ruling is the native default.
    pub fn with_chain(
        config: &Config,
        host: &Arc<Host>,
        active_chain: &ActiveChain,
    ) -> Result<Self, RunError> {
        let mut assembly = Self::empty(config, active_chain);
        let (journal, mut recovered) = assembly.journal(config)?;
        let (lifecycle, fanout) = assembly.lanes(config, std::mem::take(&mut recovered.published));
        assembly.report(&recovered);
        let (envelopes, from_sources) = mpsc::channel(STAGE);
        let (outputs, from_workers) = mpsc::channel(STAGE);
        let workers = assembly.workers(host, active_chain, recovered.cases, &outputs);
        drop(outputs);
        let ownership = recovery::ownership(config, assembly.registered.clone(), &recovered.running);
        let address = config.containerd.as_ref().and_then(|it| it.address.clone());
        assembly.sources = Some(SourceFactory {
            node: config.node.clone(),
            envelopes,
            recovered: RecoveredSources::new(
                journal.clone(),
                recovered.cursors,
                recovered.running,
                address.clone(),
            ),
            final_counters: FinalCounters::new(assembly.registered.clone()),
            holds: assembly.holds.clone(),
            stop: assembly.stopped(),
        });
        let unruled = recovery::unruled(&recovered.unruled);
        let resumed = recovery::envelopes(recovered.unruled, journal.as_ref());
        let intake_recovery = IntakeRecovery { resumed, seen: recovered.ids, journal: journal.clone() };
        let context = (Identities::new(address), UnmanagedPods::of(&config.sources));
        let intake = Intake::new(from_sources, ownership, context, workers, intake_recovery);
        assembly.add("intake".to_owned(), intake.run());
        let resumed = (recovered.undelivered, unruled);
        let delivery = assembly.delivery(from_workers, fanout, lifecycle, journal, resumed);
        assembly.add("delivery".to_owned(), delivery.run());
        Ok(assembly)
    }

    /// Without any task yet.
    fn empty(config: &Config, active_chain: &ActiveChain) -> Self {
        Self {
            tasks: Tasks::default(),
            sources: None,
            records: Records::default(),
            workers: Vec::new(),
            policies: None,
            guests: None,
            registered: Registered::default(),
            active_chain: active_chain.clone(),
            counts: Arc::new(Counts {
                sources: config.sources.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                sinks: config.sinks.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                ..Counts::default()
            }),
            holds: Holds::default(),
        }
    }

    /// Opens the journal, if one is configured, and recovers its state.
    fn journal(&mut self, config: &Config) -> Result<(Option<Journal>, Recovered), RunError> {
        let Some(settings) = &config.journal else { return Ok((None, Recovered::default())) };
        let (journal, thread, recovered) = coroner_journal::open(settings, Arc::clone(&self.counts.journal))?;
        self.tasks.add_thread("journal".to_owned(), move || thread.run());
        Ok((Some(journal), recovered))
    }

    /// Reports what the journal had: in the log, and in the audit.
    fn report(&self, recovered: &Recovered) {
        let found = Recovery {
            at_ms: unix_ms(),
            signals: recovered.unruled.len(),
            events: recovered.undelivered.len(),
            containers: recovered.cases.len(),
            damaged: recovered.damage.len(),
        };
        if found.signals + found.events + found.containers + found.damaged > 0 {
            let Recovery { signals, events, containers, damaged, .. } = found;
            tracing::info!(signals, events, containers, damaged, "recovered state from journal");
            self.records.record(Record::Recovered(found));
        }
    }

    /// Starts the workers, each with the cases of its own containers.
    fn workers(
        &mut self,
        host: &Arc<Host>,
        active_chain: &ActiveChain,
        known: Vec<worker::RecoveredCase>,
        outputs: &mpsc::Sender<WorkerOutput>,
    ) -> Vec<mpsc::Sender<WorkerTask>> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let mut cases: Vec<Vec<worker::RecoveredCase>> = vec![Vec::new(); count];
        for known in known {
            let worker = shard(&known.0, count);
            cases[worker].push(known);
        }
        let mut start = |(at, cases)| {
            let (tasks, from_intake) = mpsc::channel(STAGE);
            let (host, active_chain, outputs) = (Arc::clone(host), active_chain.clone(), outputs.clone());
            self.tasks.add_thread(format!("worker {at}"), move || {
                Worker::new(host, active_chain, cases).run(from_intake, &outputs);
            });
            tasks
        };
        let workers: Vec<_> = cases.into_iter().enumerate().map(&mut start).collect();
        self.workers = workers.iter().map(mpsc::Sender::downgrade).collect();
        workers
    }

    fn delivery(
        &self,
        outputs: mpsc::Receiver<WorkerOutput>,
        fanout: Fanout,
        lifecycle: Option<LifecycleLane>,
        journal: Option<Journal>,
        (resumed, unruled): (Vec<coroner_journal::Undelivered>, Vec<UnruledSignal>),
    ) -> Delivery {
        Delivery {
            outputs,
            fanout,
            journal,
            resumed,
            unruled,
            lifecycle,
            holds: self.holds.clone(),
            late_kills: Arc::clone(&self.counts.late_kills),
        }
    }

    /// The client of the policy manager; `None` without a manager.
    pub fn policies(&self) -> Option<PolicyClient> {
        self.policies.clone()
    }

    /// Starts a trusted source, which runs until the shutdown.
    pub fn follow(&mut self, source: &Source) {
        let task = self.sources().task(source, self.counts.source(&source.name), None);
        self.add(format!("source {}", source.name), task);
    }

    /// Starts a source of type `shim` on a socket that is already open.
    fn follow_on(&mut self, source: &Source, listener: UnixListener) {
        let task = self.sources().shims_on(source, self.counts.source(&source.name), listener);
        self.add(format!("source {}", source.name), task);
    }

    /// Starts the source of a shim that embeds the router, which runs until the shutdown.
    /// `namespace` is containerd's.
    pub fn embed(&mut self, source: &Source, namespace: &str) -> EmbeddedShim {
        let (shim, task) = self.sources().embed(source, namespace, self.counts.source(&source.name));
        self.add(format!("source {}", source.name), task);
        shim
    }

    /// Starts the sources of configured guests, and of guests added later.
    pub fn follow_guests(&mut self, config: &Config) {
        let (guests, requests) = GuestClient::channel();
        let (counts, registered) = (Arc::clone(&self.counts), self.registered.clone());
        let manager = GuestManager::new(config, counts, registered, self.sources().clone());
        self.add("guests".to_owned(), manager.run(requests));
        self.guests = Some(guests);
    }

    /// The channel from the sources to the intake.
    pub fn envelopes(&self) -> mpsc::Sender<Envelope> {
        self.sources().envelopes.clone()
    }

    fn sources(&self) -> &SourceFactory {
        self.sources.as_ref().expect("taken only when the assembly is consumed")
    }

    /// Turns true at the shutdown.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.tasks.stopped()
    }

    /// Adds a task that ends at the shutdown, or when its input closes.
    pub fn add(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.add(name, task);
    }

    /// Runs until `shutdown` resolves or a task ends unexpectedly, then drains for at most 5 s.
    pub async fn until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let deadline = async {
            shutdown.await;
            DRAIN
        };
        self.until_deadline(deadline).await.map(drop)
    }

    /// The same with the deadline that `shutdown` resolves to. Returns how many actions are left
    /// unsent.
    pub async fn until_deadline(
        mut self,
        shutdown: impl Future<Output = Duration>,
    ) -> Result<usize, RunError> {
        tokio::pin!(shutdown);
        let ended = tokio::select! {
            biased;
            deadline = &mut shutdown => Ok(deadline),
            error = self.tasks.ended() => Err(error),
        };
        self.let_go();
        let unsent = self.tasks.drain(*ended.as_ref().unwrap_or(&DRAIN)).await;
        ended.map(|_| unsent)
    }

    /// Runs until all sources have ended and everything is delivered: for a recording.
    pub async fn until_dry(mut self) -> Result<(), RunError> {
        self.let_go();
        self.tasks.dry().await
    }

    /// Drops the assembly's own channel ends, so that tasks end when their last sender is dropped.
    fn let_go(&mut self) {
        self.sources = None;
        self.policies = None;
        self.guests = None;
        self.records = Records::default();
    }
}

/// A full channel: the worker is busy and checks by itself.
fn wake(worker: mpsc::Sender<WorkerTask>) {
    worker.try_send(WorkerTask::CheckChain).unwrap_or(());
}
