//! The lane of lifecycle events: publishes each container's events in order, with at-least-once
//! delivery.

mod in_process;
mod queue;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use coroner_containerd::{EventLink, EventLinkManager};

pub use self::in_process::{Forward, InProcess};
use self::queue::{Queues, Turn};
use super::containerd::{self, Reconnected, Repeats};
use super::publish::{Publish, Task};
use super::{Records, oom_file};
use crate::counts::{DropReason, SinkCounts};
use coroner_containerd::holds::{Holds, Input, Published};
use coroner_core::audit::{Delivered, DeliveredOutcome, Record};
use coroner_core::ruling::TaskEvent;

/// Actions in the lane at most. The lane never drops: when containerd is away and the lane is full,
/// back-pressure stops the reading of sources, and their agents keep what was not read.
const ACTIONS: usize = 4096;
/// Concurrent events at most, each of another container: containerd answers in under a millisecond,
/// so more would only wait there.
const AT_ONCE: usize = 64;

/// Where CRI receives lifecycle events.
#[derive(Debug)]
pub enum Place {
    /// containerd's event exchange.
    Containerd {
        /// Its `.ttrpc` socket.
        address: PathBuf,
        /// Its gRPC socket, where CRI answers once it is ready.
        grpc_address: Option<PathBuf>,
        /// TaskOOMs that an earlier run of this router published.
        published: Vec<coroner_journal::PublishedOom>,
    },
    /// A file in the container's bundle, for CRI-O.
    OomFile,
    /// A receiver in this process, and the TaskOOMs that an earlier run of this router published.
    InProcess(InProcess, Vec<coroner_journal::PublishedOom>),
}

/// The lane of lifecycle events.
#[derive(Debug)]
pub struct Lifecycle {
    /// Where its events go.
    pub place: Place,
    /// Its delivery accounting.
    pub accounting: LifecycleAccounting,
    /// The exit barrier of held exits.
    pub holds: Holds,
    /// Turns true when the drain timeout of the shutdown has passed.
    pub give_up: watch::Receiver<bool>,
}

/// The delivery accounting of the lane.
#[derive(Debug)]
pub struct LifecycleAccounting {
    /// The sink's name.
    pub sink: String,
    /// Where outcomes are recorded.
    pub records: Records,
    /// The sink's counters.
    pub counts: Arc<SinkCounts>,
}

/// The transport of the lane's events.
#[derive(Clone)]
enum Transport {
    Containerd(EventLink),
    OomFile,
    InProcess(InProcess),
}

impl Transport {
    async fn send(
        self,
        publish: &Publish,
        attempts: &mut u32,
        error: &mut Option<String>,
    ) -> Result<(), DropReason> {
        match self {
            Self::Containerd(link) => {
                containerd::send(publish, link, attempts, error).await;
                Ok(())
            }
            Self::OomFile => oom_file::send(publish, attempts, error).await,
            Self::InProcess(receiver) => {
                receiver.send(publish, attempts, error).await;
                Ok(())
            }
        }
    }

    /// Whether an event is published: CRI-O receives exits in the shim's own answer.
    fn takes(&self, event: &TaskEvent) -> bool {
        match self {
            Self::Containerd(_) | Self::InProcess(_) => true,
            Self::OomFile => matches!(event, TaskEvent::Oom),
        }
    }

    /// Whether the outcome of an event is recorded. Outcomes of forwarded events are not.
    fn is_recorded(&self, event: &TaskEvent) -> bool {
        self.takes(event) && !matches!(event, TaskEvent::Forwarded(_))
    }
}

/// An event that was published, or that the lane gave up.
struct Sent {
    publish: Box<Publish>,
    /// `None`: the router stopped first.
    outcome: Option<Result<(), DropReason>>,
    attempts: u32,
    error: Option<String>,
}

impl Lifecycle {
    /// Publishes until the lane closes, and retries the head of each container in place. Returns
    /// the number of actions left unsent at the drain timeout.
    pub async fn run(self, mut lane: mpsc::Receiver<Task>) -> usize {
        let mut capacity = ACTIONS;
        let (links, transport, repeats) = match self.place {
            Place::Containerd { address, grpc_address, published } => {
                let counts = Arc::clone(&self.accounting.counts);
                let links = EventLinkManager::new(address, move |problem| counts.reached(problem));
                let transport = Transport::Containerd(links.link());
                (Some(links), transport, Some(Repeats::new(grpc_address, published)))
            }
            Place::OomFile => (None, Transport::OomFile, None),
            Place::InProcess(receiver, published) => {
                capacity = receiver.capacity;
                (None, Transport::InProcess(receiver), Some(Repeats::new(None, published)))
            }
        };
        let mut give_up = self.give_up.clone();
        let mut running = LaneState {
            accounting: self.accounting,
            holds: self.holds,
            give_up: self.give_up,
            transport,
            repeats,
            queues: Queues::default(),
            backlog: Backlog::default(),
            sending: FuturesUnordered::new(),
            parked: FuturesUnordered::new(),
        };
        let mut open = true;
        let link_kept = keep(links);
        let repeating = running.due();
        tokio::pin!(link_kept, repeating);
        while open || running.queues.len() > 0 {
            // In a fixed order, so that a seed of the simulation reproduces its run. The lane is last:
            // each of the others ends by itself.
            tokio::select! {
                biased;
                _ = give_up.wait_for(|it| *it) => break,
                () = &mut link_kept => {}
                reconnected = &mut repeating => {
                    running.repeat(reconnected);
                    repeating.set(running.due());
                }
                Some(sent) = running.sending.next() => running.sent(sent),
                Some(clear) = running.parked.next() => {
                    running.queues.release(&clear.container, &clear.signal, clear.published);
                }
                task = lane.recv(), if open && running.queues.len() < capacity => match task {
                    Some(task) => running.take(task),
                    None => open = false,
                },
            }
            running.begin();
        }
        running.give_up().await
    }
}

/// A held exit that can be published.
struct Clear {
    container: String,
    signal: String,
    published: Published,
}

/// The state of the running lane.
struct LaneState {
    accounting: LifecycleAccounting,
    holds: Holds,
    give_up: watch::Receiver<bool>,
    transport: Transport,
    repeats: Option<Repeats>,
    queues: Queues,
    backlog: Backlog,
    sending: FuturesUnordered<BoxFuture<'static, Sent>>,
    /// Held exits at the head of their queue.
    parked: FuturesUnordered<BoxFuture<'static, Clear>>,
}

impl LaneState {
    fn take(&mut self, task: Task) {
        match task {
            Task::Ended(container) => {
                if let Some(repeats) = &mut self.repeats {
                    repeats.ended(&container);
                }
            }
            Task::Publish(publish) => self.push(publish),
        }
    }

    fn push(&mut self, publish: Box<Publish>) {
        self.backlog.add(publish.ruled, &self.accounting.counts);
        self.queues.push(publish);
    }

    fn sent(&mut self, sent: Sent) {
        self.backlog.remove(sent.publish.ruled, &self.accounting.counts);
        if let Some(repeats) = &mut self.repeats {
            repeats.published(&sent.publish);
        }
        self.resolve_starts(|queues| queues.sent(&sent.publish));
        self.accounting.completed(&self.transport, sent);
    }

    fn resolve_starts(&mut self, parked: impl FnOnce(&mut Queues) -> Vec<String>) {
        for signal in parked(&mut self.queues) {
            self.holds.apply(&signal, Input::StartResolved);
        }
    }

    /// containerd is connected again.
    fn repeat(&mut self, reconnected: Reconnected) {
        let repeats: Vec<Publish> =
            self.repeats.iter_mut().flat_map(|repeats| repeats.take(reconnected)).collect();
        for publish in repeats {
            self.push(Box::new(publish));
        }
    }

    /// Resolves when containerd is connected again; never without containerd.
    fn due(&self) -> BoxFuture<'static, Reconnected> {
        match (&self.repeats, &self.transport) {
            (Some(repeats), Transport::Containerd(link)) => Box::pin(repeats.due(link.clone())),
            (Some(repeats), Transport::InProcess(receiver)) => {
                Box::pin(receiver.clone().restarted(repeats.generation()))
            }
            (None, _) | (_, Transport::OomFile) => Box::pin(std::future::pending()),
        }
    }

    /// Starts publishing what is next, up to the limit of concurrent events.
    fn begin(&mut self) {
        // Exits are held only where they are published: elsewhere no later event depends on them.
        let holds = self.holds.clone();
        let awaits_start = move |signal: &str| holds.barrier(signal).awaits_start();
        let is_held: Option<&dyn Fn(&str) -> bool> =
            (!matches!(self.transport, Transport::OomFile)).then_some(&awaits_start);
        while self.sending.len() < AT_ONCE
            && let Some(turn) = self.queues.next(is_held)
        {
            match turn {
                Turn::Send(publish) => self.send(publish),
                Turn::Park { container, signal, status } => {
                    let holds = self.holds.clone();
                    holds.apply(&signal, Input::Reached(status));
                    self.parked.push(Box::pin(async move {
                        let published = holds.published(&signal).await;
                        Clear { container, signal, published }
                    }));
                }
                Turn::Unstarted(signals) => self.resolve_starts(|_| signals),
            }
        }
    }

    fn send(&self, publish: Box<Publish>) {
        if let TaskEvent::Exit { status, .. } = &publish.event {
            self.holds.apply(&publish.signal, Input::Reached(*status));
        }
        let (transport, mut give_up) = (self.transport.clone(), self.give_up.clone());
        self.sending.push(Box::pin(async move {
            let (mut attempts, mut error) = (0, None);
            let outcome = tokio::select! {
                sent = transport.send(&publish, &mut attempts, &mut error) => Some(sent),
                () = given_up(&mut give_up) => None,
            };
            Sent { publish, outcome, attempts, error }
        }));
    }

    /// Gives up: unsent actions stay in the journal, and the shims that wait for them get no
    /// answer. Returns the number of unsent actions.
    async fn give_up(mut self) -> usize {
        let unsent = self.queues.len();
        while let Some(sent) = self.sending.next().await {
            self.accounting.completed(&self.transport, sent);
        }
        for publish in self.queues.drain() {
            self.accounting
                .completed(&self.transport, Sent { publish, outcome: None, attempts: 0, error: None });
        }
        unsent
    }
}

/// The actions in the lane by the time of their ruling: containers overtake each other, so the
/// oldest is not always the first.
#[derive(Default)]
struct Backlog {
    count: usize,
    by_age: BTreeMap<Instant, usize>,
}

impl Backlog {
    fn add(&mut self, ruled: Instant, counts: &SinkCounts) {
        self.count += 1;
        *self.by_age.entry(ruled).or_default() += 1;
        self.report(counts);
    }

    fn remove(&mut self, ruled: Instant, counts: &SinkCounts) {
        self.count -= 1;
        if let Some(of_then) = self.by_age.get_mut(&ruled) {
            *of_then -= 1;
            if *of_then == 0 {
                self.by_age.remove(&ruled);
            }
        }
        self.report(counts);
    }

    fn report(&self, counts: &SinkCounts) {
        counts.waiting(self.count, self.by_age.first_key_value().map(|(ruled, _)| *ruled));
    }
}

impl LifecycleAccounting {
    fn completed(&self, transport: &Transport, Sent { publish, outcome, attempts, error }: Sent) {
        if transport.is_recorded(&publish.event) {
            self.records.record(Record::Delivered(Delivered {
                id: publish.signal,
                sink: self.sink.clone(),
                topic: publish.event.topic().to_owned(),
                outcome: match outcome {
                    None => DeliveredOutcome::Unsent,
                    Some(Err(_)) => DeliveredOutcome::Dropped,
                    Some(Ok(())) if publish.repeat => DeliveredOutcome::Repeated,
                    Some(Ok(())) => DeliveredOutcome::Acked,
                },
                attempts,
                waited_ms: u64::try_from(publish.ruled.elapsed().as_millis()).unwrap_or(u64::MAX),
                error,
            }));
        }
        self.counts.failed.more(u64::from(attempts.saturating_sub(1)));
        match outcome {
            None => return,
            Some(Ok(())) if !transport.takes(&publish.event) => {}
            Some(Ok(())) => self.counts.delivered.more(1),
            Some(Err(reason)) => {
                self.counts.dropped.one(reason);
            }
        }
        if let Some(ack) = publish.ack {
            ack.done();
        }
    }
}

async fn keep(links: Option<EventLinkManager>) {
    match links {
        Some(links) => links.keep().await,
        None => std::future::pending().await,
    }
}

async fn given_up(give_up: &mut watch::Receiver<bool>) {
    drop(give_up.wait_for(|it| *it).await);
}
