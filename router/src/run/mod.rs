//! Puts the router together: its [`parts`], and what an [`earlier`] run of it left.

mod earlier;
mod parts;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use coroner_proto::address::Address;
use tokio::sync::{mpsc, watch};

use self::parts::Parts;
use crate::arrival::{Arrival, unix_ms};
use crate::audit::{Record, Recovery};
use crate::claims::Registered;
use crate::config::{Config, Mode, SinkKind, Source, SourceKind};
use crate::control::{self, ControlError};
use crate::counts::Counts;
use crate::delivery::{Delivery, Lifecycle};
use crate::guests::{Guests, Keeper as GuestKeeper};
use crate::holds::Holds;
use crate::identity::Identities;
use crate::intake::{Earlier, Intake, Task, shard};
use crate::journal::{self, Journal, JournalError, Published, Recovered};
use crate::metrics::{self, MetricsListener};
use crate::policy::{Host, HostError, Keeper, Lineups, Outside, Policies};
use crate::sink::{self, Lanes, LifecycleBooks, Outlets, Place, Records};
use crate::source::agent::AgentSource;
use crate::source::kata::KataSource;
use crate::source::shim::{Asked, Handle, ShimSource};
use crate::source::{Orders, Past, Settlers};
use crate::worker::{self, Verdict, Worker};

/// Signals between two stages. Small: what waits here is in no order anybody can see, and sources keep the rest.
const STAGE: usize = 256;
/// Chain workers: rulings take microseconds, more threads would only wait.
const MAX_WORKERS: usize = 4;
/// CRI-O's own for its shims.
const CRIO_NAMESPACE: &str = "default";
/// Why a router did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Policies cannot run here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nobody could ask it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// What it accepts could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Prometheus could not ask it.
    #[error("cannot listen on {address} (metrics.address): {source}")]
    Metrics {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A part ended before it was told to.
    #[error("{part} ended by itself: {reason}")]
    Ended {
        /// Which.
        part: String,
        /// How.
        reason: String,
    },
}

/// Runs a router until `shutdown` resolves, then lets it run dry. `ready` is called once everything runs.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), RunError> {
    let router = Router::serving(&config)?;
    ready();
    router.until(shutdown).await
}

/// The parts of a running router.
#[derive(Debug)]
pub struct Router {
    parts: Parts,
    arrivals: Option<mpsc::Sender<Arrival>>,
    records: Records,
    workers: Vec<mpsc::WeakSender<Task>>,
    policies: Option<Policies>,
    guests: Option<Guests>,
    registered: Registered,
    lineups: Lineups,
    counts: Arc<Counts>,
    past: Past,
    settlers: Settlers,
    holds: Holds,
    node: String,
}

impl Router {
    /// Starts everything the configuration names. To be called on the runtime.
    pub fn serving(config: &Config) -> Result<Self, RunError> {
        Self::serving_on(config, None)
    }

    /// The same with a control socket that is open already, in place of the one the configuration names.
    pub fn serving_on(config: &Config, passed: Option<UnixListener>) -> Result<Self, RunError> {
        let mut router = Self::start(config)?;
        router.follow_guests(config);
        router.control(config, passed)?;
        router.metrics(config)?;
        for source in &config.sources {
            router.follow(source);
        }
        Ok(router)
    }

    /// Starts everything but the sources, with the policies the configuration names, and follows their directory.
    pub fn start(config: &Config) -> Result<Self, RunError> {
        let host = Arc::new(Host::new(config.policies.clone())?);
        let keeper = Keeper::start(Arc::clone(&host));
        let mut router = Self::with_lineups(config, &host, &keeper.lineups())?;
        let (policies, asked) = Policies::channel();
        let (records, workers) = (router.records.clone(), router.workers.clone());
        let sources = config.sources.iter().map(|source| (source.name.clone(), source.mode.knowable()));
        let outside = Outside {
            told: Box::new(move |chain| records.tell(Record::Chain(chain))),
            // A worker with something to do looks by itself; one that has ended needs nothing.
            wake: Box::new(move || workers.iter().for_each(|it| it.upgrade().map_or((), wake))),
            sources: sources.collect(),
        };
        let (stop, asks) = (router.stopped(), policies.clone());
        router.parts.add_thread("policies".to_owned(), move || keeper.run(&asks, asked, outside, stop));
        router.policies = Some(policies);
        Ok(router)
    }

    /// Starts everything but the sources, with a lineup that others swap or nobody; without policies in it, every ruling is the native default.
    pub fn with_lineups(config: &Config, host: &Arc<Host>, lineups: &Lineups) -> Result<Self, RunError> {
        let (arrivals, from_sources) = mpsc::channel(STAGE);
        let registered = Registered::default();
        let mut router = Self {
            parts: Parts::default(),
            arrivals: Some(arrivals),
            records: Records::default(),
            workers: Vec::new(),
            policies: None,
            guests: None,
            registered: registered.clone(),
            lineups: lineups.clone(),
            counts: Arc::new(Counts {
                sources: config.sources.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                sinks: config.sinks.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                ..Counts::default()
            }),
            past: Past::default(),
            settlers: Settlers::new(registered),
            holds: Holds::default(),
            node: config.node.clone(),
        };
        let (journal, recovered) = router.journal(config)?;
        let found = Recovery {
            at_ms: unix_ms(),
            signals: recovered.unruled.len(),
            events: recovered.undelivered.len(),
            containers: recovered.cases.len(),
            damaged: recovered.damage.len(),
        };
        let (lifecycle, outlets) = router.sinks(config, recovered.published);
        if found.signals + found.events + found.containers + found.damaged > 0 {
            let Recovery { signals, events, containers, damaged, .. } = found;
            tracing::info!(signals, events, containers, damaged, "going on with what the journal holds");
            router.records.tell(Record::Recovered(found));
        }
        let claims = earlier::claims(config, router.registered.clone(), &recovered.lives);
        let address = config.containerd.as_ref().and_then(|it| it.address.clone());
        router.past = Past::new(journal.clone(), recovered.cursors, recovered.lives, address.clone());
        let (rulings, from_workers) = mpsc::channel(STAGE);
        let workers = router.workers(host, lineups, recovered.cases, &rulings);
        drop(rulings);
        let resumed = earlier::arrivals(recovered.unruled, journal.as_ref());
        let earlier = Earlier { resumed, taken: recovered.ids, journal: journal.clone() };
        let intake = Intake::new(from_sources, claims, Identities::new(address), workers, earlier);
        router.add("intake".to_owned(), intake.run());
        let delivery = Delivery {
            rulings: from_workers,
            outlets,
            journal,
            resumed: recovered.undelivered,
            lifecycle,
            holds: router.holds.clone(),
            late_kills: Arc::clone(&router.counts.late_kills),
        };
        router.add("delivery".to_owned(), delivery.run());
        Ok(router)
    }

    /// Starts the workers, each with the cases of its own containers.
    fn workers(
        &mut self,
        host: &Arc<Host>,
        lineups: &Lineups,
        known: Vec<worker::Known>,
        rulings: &mpsc::Sender<Verdict>,
    ) -> Vec<mpsc::Sender<Task>> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let mut cases: Vec<Vec<worker::Known>> = vec![Vec::new(); count];
        for known in known {
            let worker = shard(&known.0, count);
            cases[worker].push(known);
        }
        let mut start = |(at, cases)| {
            let (tasks, from_intake) = mpsc::channel(STAGE);
            let (host, lineups, rulings) = (Arc::clone(host), lineups.clone(), rulings.clone());
            self.parts.add_thread(format!("worker {at}"), move || {
                Worker::new(host, lineups, cases).run(from_intake, &rulings);
            });
            tasks
        };
        let workers: Vec<_> = cases.into_iter().enumerate().map(&mut start).collect();
        self.workers = workers.iter().map(mpsc::Sender::downgrade).collect();
        workers
    }

    /// Opens the journal, if the configuration has one, and says what was in it.
    fn journal(&mut self, config: &Config) -> Result<(Option<Journal>, Recovered), RunError> {
        let Some(settings) = &config.journal else { return Ok((None, Recovered::default())) };
        let (journal, thread, recovered) = journal::open(settings, Arc::clone(&self.counts.journal))?;
        self.parts.add_thread("journal".to_owned(), move || thread.run());
        Ok((Some(journal), recovered))
    }

    /// Where the policies of this router can be asked for; `None` where nobody keeps them.
    pub fn policies(&self) -> Option<Policies> {
        self.policies.clone()
    }

    /// Reads a trusted source until the router stops.
    pub fn follow(&mut self, source: &Source) {
        let counts = self.counts.source(&source.name);
        let (name, node, arrivals) = (format!("source {}", source.name), self.node.clone(), self.arrivals());
        let orders = Orders { stop: self.stopped(), removed: None };
        let past = self.past.of(&source.name);
        match source.kind {
            SourceKind::Agent => {
                let settlers = self.settlers.clone();
                let agent = AgentSource::new(source.clone(), node, arrivals, counts, None, past, settlers);
                self.add(name, agent.run(orders));
            }
            SourceKind::Kata => {
                self.add(name, KataSource::new(source.clone(), node, arrivals, counts, None).run(orders));
            }
            SourceKind::Shim => {
                let shims = ShimSource::new(source.clone(), node, arrivals, counts, past, self.asked());
                self.add(name, shims.run(orders));
            }
        }
    }

    /// Whom a shim's source asks.
    fn asked(&self) -> Asked {
        Asked { holds: self.holds.clone(), settlers: self.settlers.clone() }
    }

    /// The way in for a shim that embeds this router: `name` is its source's, in audit records and event ids, and is no other source's; `namespace`
    /// containerd's. To be called on the runtime.
    pub fn handle(&mut self, name: &str, namespace: &str) -> Handle {
        let source = Source {
            name: name.to_owned(),
            kind: SourceKind::Shim,
            mode: Mode::Sole,
            guest: None,
            // Nobody connects.
            address: Address::Unix(PathBuf::new()),
            machine: None,
        };
        let orders = Orders { stop: self.stopped(), removed: None };
        let (arrivals, counts, past) = (self.arrivals(), self.counts.source(name), self.past.of(name));
        let shim = ShimSource::new(source, self.node.clone(), arrivals, counts, past, self.asked());
        let (handle, followed) = shim.embedded(namespace.to_owned(), orders);
        self.add(format!("source {name}"), followed);
        handle
    }

    /// Follows the guests of the configuration, and those that are added from now on.
    pub fn follow_guests(&mut self, config: &Config) {
        let (guests, asked) = Guests::channel();
        let (counts, registered) = (Arc::clone(&self.counts), self.registered.clone());
        let past = self.past.clone();
        let keeper = GuestKeeper::new(
            config,
            self.arrivals(),
            counts,
            registered,
            self.settlers.clone(),
            past,
            self.stopped(),
        );
        self.add("guests".to_owned(), keeper.run(asked));
        self.guests = Some(guests);
    }

    /// Answers on the control socket, if the configuration has one.
    fn control(&mut self, config: &Config, passed: Option<UnixListener>) -> Result<(), RunError> {
        let (Some(path), Some(policies), Some(guests)) =
            (&config.control, self.policies(), self.guests.clone())
        else {
            return Ok(());
        };
        let listener = passed.map_or_else(|| control::listen(path), control::passed)?;
        let service = control::Service {
            policies,
            guests,
            counts: Arc::clone(&self.counts),
            tap: self.records.tap(),
            stop: self.stopped(),
            about: control::About::new(config),
        };
        self.add("control".to_owned(), control::serve(listener, service, self.stopped()));
        Ok(())
    }

    /// Answers Prometheus, if the configuration says where.
    fn metrics(&mut self, config: &Config) -> Result<(), RunError> {
        let Some(address) = &config.metrics else { return Ok(()) };
        let failed = |source| RunError::Metrics { address: format!("{address:?}"), source };
        let listener = MetricsListener::open(address).map_err(failed)?;
        let registry = metrics::registry(Arc::clone(&self.counts), self.lineups.clone());
        self.add("metrics".to_owned(), metrics::serve(listener, registry, self.stopped()));
        Ok(())
    }

    /// Where a source hands its signals on.
    pub fn arrivals(&self) -> mpsc::Sender<Arrival> {
        self.arrivals.clone().expect("taken only by `until`, which consumes the router")
    }

    /// Turns true when sources shall end.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.parts.stopped()
    }

    /// Adds a task that ends when the router stops, or when its input closes.
    pub fn add(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        self.parts.add(name, task);
    }

    /// Lanes and their sinks.
    fn sinks(&mut self, config: &Config, mut published: Vec<Published>) -> (Option<Lifecycle>, Outlets) {
        let Lanes { lanes, records, outlets } = Lanes::new(config, &self.counts, &self.parts.over());
        for lane in lanes {
            self.add(format!("sink {}", lane.name()), lane.run());
        }
        self.records = records.clone();
        let mut lifecycle = None;
        for sink in &config.sinks {
            let (place, namespace) = match (&sink.kind, &config.containerd) {
                (SinkKind::Containerd, Some(at)) => {
                    let (address, grpc_address) = (at.ttrpc_address.clone(), at.address.clone());
                    let published = std::mem::take(&mut published);
                    (Place::Containerd { address, grpc_address, published }, at.namespace.clone())
                }
                (SinkKind::OomFile, _) => (Place::OomFile, CRIO_NAMESPACE.to_owned()),
                _ => continue,
            };
            let is_oom_file = matches!(place, Place::OomFile);
            // The lane itself holds what waits.
            let (lane, actions) = mpsc::channel(STAGE);
            let books = LifecycleBooks {
                sink: sink.name.clone(),
                records: records.clone(),
                counts: self.counts.sink(&sink.name),
            };
            let (holds, give_up) = (self.holds.clone(), self.parts.over());
            let publisher = sink::Lifecycle { place, books, holds, give_up };
            self.parts.add_counting(format!("sink {}", sink.name), publisher.run(actions));
            lifecycle = Some(Lifecycle { sink: sink.name.clone(), namespace, is_oom_file, lane });
        }
        (lifecycle, outlets)
    }

    /// Runs until `shutdown` resolves or a part ends by itself, then lets what was taken run dry.
    pub async fn until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        tokio::pin!(shutdown);
        let ended = tokio::select! {
            biased;
            () = &mut shutdown => Ok(()),
            error = self.parts.ended() => Err(error),
        };
        self.let_go();
        self.parts.drain().await;
        ended
    }

    /// Runs until every source has ended by itself and all of it is delivered: for a recording.
    pub async fn until_dry(mut self) -> Result<(), RunError> {
        self.let_go();
        self.parts.dry().await
    }

    /// Drops the router's own ends: what reads from them ends when everybody else has dropped theirs.
    fn let_go(&mut self) {
        self.arrivals = None;
        self.past = Past::default();
        self.policies = None;
        self.guests = None;
        self.records = Records::default();
    }
}

/// Full: it has something to do, and looks then.
fn wake(worker: mpsc::Sender<Task>) {
    worker.try_send(Task::Look).unwrap_or(());
}
