//! Puts the router together, owns every task of it, and lets it run dry when it shall stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use crate::arrival::Arrival;
use crate::audit::Record;
use crate::claims::{Claims, Registered};
use crate::config::{Config, SinkKind, Source, SourceKind};
use crate::control::{self, ControlError};
use crate::counts::{Counts, GuestCounts};
use crate::delivery::{Delivery, Lifecycle};
use crate::guests::{Guests, Keeper as GuestKeeper};
use crate::identity::Identities;
use crate::intake::{Intake, Task};
use crate::metrics::{self, MetricsListener};
use crate::policy::{Host, HostError, Keeper, Lineups, Outside, Policies};
use crate::sink::containerd::{self, Containerd};
use crate::sink::{Lanes, Outlets, Records};
use crate::source::Orders;
use crate::source::agent::AgentSource;
use crate::source::kata::KataSource;
use crate::worker::Worker;

/// Signals between two stages. Small: what waits here is in no order anybody can see, and sources keep the rest.
const STAGE: usize = 256;
/// Chain workers: rulings take microseconds, more threads would only wait.
const MAX_WORKERS: usize = 4;
/// What was taken may take this long to leave once the router shall stop.
const DRAIN: Duration = Duration::from_secs(5);
/// What the rest may take once lanes were told to give up.
const LAST: Duration = Duration::from_secs(1);

/// Why a router did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Policies cannot run here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nobody could ask it.
    #[error(transparent)]
    Control(#[from] ControlError),
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
    tasks: JoinSet<usize>,
    names: Vec<(Id, String)>,
    arrivals: Option<mpsc::Sender<Arrival>>,
    records: Records,
    workers: Vec<mpsc::WeakSender<Task>>,
    policies: Option<Policies>,
    guests: Option<Guests>,
    registered: Registered,
    lineups: Lineups,
    counts: Arc<Counts>,
    node: String,
    stop: watch::Sender<bool>,
    give_up: watch::Sender<bool>,
}

impl Router {
    /// Starts everything the configuration names. To be called on the runtime.
    pub fn serving(config: &Config) -> Result<Self, RunError> {
        let mut router = Self::start(config)?;
        router.follow_guests(config);
        router.control(config)?;
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
        let mut router = Self::with_lineups(config, &host, &keeper.lineups());
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
        router.add_thread("policies".to_owned(), move || keeper.run(&asks, asked, outside, stop));
        router.policies = Some(policies);
        Ok(router)
    }

    /// Starts everything but the sources, with a lineup that others swap or nobody; without policies in it, every ruling is the native default.
    pub fn with_lineups(config: &Config, host: &Arc<Host>, lineups: &Lineups) -> Self {
        let (stop, _) = watch::channel(false);
        let (give_up, _) = watch::channel(false);
        let (arrivals, from_sources) = mpsc::channel(STAGE);
        let mut router = Self {
            tasks: JoinSet::new(),
            names: Vec::new(),
            arrivals: Some(arrivals),
            records: Records::default(),
            workers: Vec::new(),
            policies: None,
            guests: None,
            registered: Registered::default(),
            lineups: lineups.clone(),
            counts: Arc::new(Counts {
                sources: config.sources.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                sinks: config.sinks.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                guests: GuestCounts::default(),
                late_kills: Arc::default(),
                reports_unrouted: Arc::default(),
            }),
            node: config.node.clone(),
            stop,
            give_up,
        };
        let (lifecycle, outlets) = router.sinks(config);
        let (rulings, from_workers) = mpsc::channel(STAGE);
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let workers: Vec<_> = (0..count)
            .map(|at| {
                let (tasks, from_intake) = mpsc::channel(STAGE);
                let (host, lineups, rulings) = (Arc::clone(host), lineups.clone(), rulings.clone());
                router.add_thread(format!("worker {at}"), move || {
                    Worker::new(host, lineups).run(from_intake, &rulings);
                });
                tasks
            })
            .collect();
        drop(rulings);
        router.workers = workers.iter().map(mpsc::Sender::downgrade).collect();
        let address = config.containerd.as_ref().and_then(|it| it.address.clone());
        let claims = Claims::new(router.registered.clone());
        let intake = Intake { arrivals: from_sources, claims, identities: Identities::new(address), workers };
        router.add("intake".to_owned(), intake.run());
        let late_kills = Arc::clone(&router.counts.late_kills);
        let delivery = Delivery { rulings: from_workers, outlets, lifecycle, late_kills };
        router.add("delivery".to_owned(), delivery.run());
        router
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
        match source.kind {
            SourceKind::Agent => {
                self.add(name, AgentSource::new(source.clone(), node, arrivals, counts, None).run(orders));
            }
            SourceKind::Kata => {
                self.add(name, KataSource::new(source.clone(), node, arrivals, counts, None).run(orders));
            }
        }
    }

    /// Follows the guests of the configuration, and those that are added from now on.
    pub fn follow_guests(&mut self, config: &Config) {
        let (guests, asked) = Guests::channel();
        let (counts, registered) = (Arc::clone(&self.counts), self.registered.clone());
        let keeper = GuestKeeper::new(config, self.arrivals(), counts, registered, self.stopped());
        self.add("guests".to_owned(), keeper.run(asked));
        self.guests = Some(guests);
    }

    /// Answers on the control socket, if the configuration has one.
    fn control(&mut self, config: &Config) -> Result<(), RunError> {
        let (Some(path), Some(policies), Some(guests)) =
            (&config.control, self.policies(), self.guests.clone())
        else {
            return Ok(());
        };
        let listener = control::listen(path)?;
        let counts = Arc::clone(&self.counts);
        let service = control::Service { policies, guests, counts, about: control::About::new(config) };
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
        self.stop.subscribe()
    }

    /// Adds a task that ends when the router stops, or when its input closes.
    pub fn add(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        self.add_counting(name, async {
            task.await;
            0
        });
    }

    fn add_counting(&mut self, name: String, task: impl Future<Output = usize> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.names.push((handle.id(), name));
    }

    fn add_thread(&mut self, name: String, task: impl FnOnce() + Send + 'static) {
        let handle = self.tasks.spawn_blocking(|| {
            task();
            0
        });
        self.names.push((handle.id(), name));
    }

    /// Lanes and their sinks.
    fn sinks(&mut self, config: &Config) -> (Option<Lifecycle>, Outlets) {
        let Lanes { lanes, records, outlets } = Lanes::new(config, &self.counts, &self.give_up.subscribe());
        for lane in lanes {
            self.add(format!("sink {}", lane.name()), lane.run());
        }
        let publisher = config.sinks.iter().find(|it| matches!(it.kind, SinkKind::Containerd));
        self.records = records.clone();
        let lifecycle = publisher.zip(config.containerd.as_ref()).map(|(sink, at)| {
            let (lane, actions) = mpsc::channel(containerd::ACTIONS);
            let publisher = Containerd {
                name: sink.name.clone(),
                address: at.ttrpc_address.clone(),
                records: records.clone(),
                counts: self.counts.sink(&sink.name),
                give_up: self.give_up.subscribe(),
            };
            self.add_counting(format!("sink {}", sink.name), publisher.run(actions));
            Lifecycle { sink: sink.name.clone(), namespace: at.namespace.clone(), lane }
        });
        (lifecycle, outlets)
    }

    /// Runs until `shutdown` resolves or a part ends by itself, then lets what was taken run dry.
    pub async fn until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        tokio::pin!(shutdown);
        let ended = tokio::select! {
            biased;
            () = &mut shutdown => Ok(()),
            Some(ended) = self.tasks.join_next_with_id() => Err(self.ended(ended)),
        };
        self.drain().await;
        ended
    }

    /// Runs until every source has ended by itself and all of it is delivered: for a recording.
    pub async fn until_dry(mut self) -> Result<(), RunError> {
        self.let_go();
        // A recording ends by itself; the policies' keeper hears this, and reads no further.
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if ended.is_err() {
                return Err(self.ended(ended));
            }
        }
        Ok(())
    }

    /// Drops the router's own ends: what reads from them ends when everybody else has dropped theirs.
    fn let_go(&mut self) {
        self.arrivals = None;
        self.policies = None;
        self.guests = None;
        self.records = Records::default();
    }

    async fn drain(mut self) {
        self.let_go();
        self.stop.send_replace(true);
        let mut unsent = 0;
        if tokio::time::timeout(DRAIN, self.join(&mut unsent)).await.is_err() {
            self.give_up.send_replace(true);
            if tokio::time::timeout(LAST, self.join(&mut unsent)).await.is_err() {
                tracing::warn!(parts = self.tasks.len(), "parts that did not end in time are left behind");
            }
        }
        if unsent > 0 {
            tracing::warn!(
                unsent,
                "actions left unsent; the agents tell their signals again at the next start"
            );
        }
    }

    async fn join(&mut self, unsent: &mut usize) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            match ended {
                Ok((_, count)) => *unsent += count,
                Err(_) => {
                    let error = self.ended(ended);
                    tracing::error!(%error, "a part failed while the router ran dry");
                }
            }
        }
    }

    fn ended(&self, ended: Result<(Id, usize), JoinError>) -> RunError {
        let (id, reason) = match ended {
            Ok((id, _)) => (id, "nobody told it to".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        let part = self.names.iter().find(|(it, _)| *it == id).map_or("a part", |(_, name)| name).to_owned();
        RunError::Ended { part, reason }
    }
}

/// Full: it has something to do, and looks then.
fn wake(worker: mpsc::Sender<Task>) {
    worker.try_send(Task::Look).unwrap_or(());
}
