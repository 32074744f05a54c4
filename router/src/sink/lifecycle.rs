//! The lane of lifecycle events: each container's in order, until they are where CRI learns of them.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::containerd::{self, Hears, Link, Links, Repeats};
use super::publish::{Publish, Task};
use super::{Records, oom_file};
use crate::audit::{Delivered, DeliveredOutcome, Record};
use crate::counts::{DropReason, SinkCounts};
use crate::holds::Holds;
use crate::journal::Published;
use crate::ruling::TaskEvent;

/// Actions the lane holds. It never drops: when containerd is away for longer than this lasts, sources are read no
/// further, and their agents keep the state of what was not read.
const ACTIONS: usize = 4096;
/// Containers whose events are on their way at once: containerd answers in under a millisecond, more would only wait there.
const AT_ONCE: usize = 64;

/// Where CRI learns of them.
#[derive(Debug)]
pub enum Place {
    /// containerd's event exchange.
    Containerd {
        /// Its `.ttrpc` socket.
        address: PathBuf,
        /// Its gRPC socket, where CRI answers when it is ready.
        grpc_address: Option<PathBuf>,
        /// TaskOOMs that an earlier run of this router published.
        published: Vec<Published>,
    },
    /// A file in the container's bundle, for CRI-O.
    OomFile,
}

/// The lane.
#[derive(Debug)]
pub struct Lifecycle {
    /// Where it leads.
    pub place: Place,
    /// What is told of it.
    pub books: LifecycleBooks,
    /// Exits that somebody waits for.
    pub holds: Holds,
    /// Turns true when the router's time to drain is over.
    pub give_up: watch::Receiver<bool>,
}

/// What is told of the lane.
#[derive(Debug)]
pub struct LifecycleBooks {
    /// The sink's name.
    pub sink: String,
    /// Where outcomes are told.
    pub records: Records,
    /// What is counted.
    pub counts: Arc<SinkCounts>,
}

/// The way there.
#[derive(Clone)]
enum Way {
    Containerd(Link),
    OomFile,
}

impl Way {
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
        }
    }

    /// Whether an event goes anywhere: CRI-O is told of exits by the shim's own answer.
    fn takes(&self, event: &TaskEvent) -> bool {
        match self {
            Self::Containerd(_) => true,
            Self::OomFile => matches!(event, TaskEvent::Oom),
        }
    }

    /// Whether what became of an event is told. Of what a shim published nothing is.
    fn tells(&self, event: &TaskEvent) -> bool {
        self.takes(event) && !matches!(event, TaskEvent::Forwarded(_))
    }
}

/// An event that is out, or that was given up.
struct Sent {
    publish: Publish,
    /// None: the router stopped first.
    outcome: Option<Result<(), DropReason>>,
    attempts: u32,
    error: Option<String>,
}

impl Lifecycle {
    /// Publishes until the lane closes, the head of each container again and again until it is out. Returns how
    /// many actions it left unsent when told to give up.
    pub async fn run(self, mut lane: mpsc::Receiver<Task>) -> usize {
        let (links, way, mut repeats) = match self.place {
            Place::Containerd { address, grpc_address, published } => {
                let links = Links::new(address);
                let way = Way::Containerd(links.link());
                (Some(links), way, Some(Repeats::new(grpc_address, published)))
            }
            Place::OomFile => (None, Way::OomFile, None),
        };
        let books = self.books;
        let mut give_up = self.give_up.clone();
        // Per container: what waits behind the one that is on its way.
        let mut queues: HashMap<String, VecDeque<Publish>> = HashMap::new();
        let (mut waiting, mut flying, mut held, mut open) =
            (VecDeque::new(), FuturesUnordered::new(), 0_usize, true);
        // Exits whose turn it is, and that whoever waits for is to be told first.
        let mut kept = FuturesUnordered::new();
        let keeping = keep(links);
        let repeating = due(repeats.as_ref(), &way);
        tokio::pin!(keeping, repeating);
        while open || held > 0 {
            tokio::select! {
                task = lane.recv(), if open && held < ACTIONS => match task {
                    None => open = false,
                    Some(Task::Ended(container)) => {
                        if let Some(repeats) = &mut repeats {
                            repeats.ended(&container);
                        }
                    }
                    Some(Task::Publish(publish)) => {
                        held += 1;
                        enqueue(*publish, &mut queues, &mut waiting);
                    }
                },
                Some(sent) = flying.next() => {
                    let Sent { publish, .. } = &sent;
                    held -= 1;
                    if let Some(repeats) = &mut repeats {
                        repeats.published(publish);
                    }
                    let container = publish.container.clone();
                    books.told(&way, sent);
                    match queues.get_mut(&container).and_then(VecDeque::pop_front) {
                        Some(next) => waiting.push_back(next),
                        None => drop(queues.remove(&container)),
                    }
                }
                Some(publish) = kept.next() => waiting.push_front(publish),
                hears = &mut repeating => {
                    for publish in repeats.iter_mut().flat_map(|repeats| repeats.take(hears)) {
                        held += 1;
                        enqueue(publish, &mut queues, &mut waiting);
                    }
                    repeating.set(due(repeats.as_ref(), &way));
                }
                () = &mut keeping => {}
                _ = give_up.wait_for(|it| *it) => break,
            }
            while flying.len() < AT_ONCE
                && let Some(publish) = waiting.pop_front()
            {
                // Where exits are published, who waits is told first; elsewhere nobody waits for what comes after.
                if publish.is_held() && matches!(way, Way::Containerd(_)) {
                    kept.push(told_first(publish, self.holds.clone()));
                    continue;
                }
                if let TaskEvent::Exit { status, .. } = &publish.event {
                    self.holds.reached(&publish.signal, *status);
                }
                let (way, mut give_up) = (way.clone(), self.give_up.clone());
                flying.push(async move {
                    let (mut attempts, mut error) = (0, None);
                    let outcome = tokio::select! {
                        sent = way.send(&publish, &mut attempts, &mut error) => Some(sent),
                        () = given_up(&mut give_up) => None,
                    };
                    Sent { publish, outcome, attempts, error }
                });
            }
        }
        // Given up: what is in the journal stays there, and who waits for the rest hears nothing.
        while let Some(sent) = flying.next().await {
            books.told(&way, sent);
        }
        drop(kept);
        for publish in waiting.into_iter().chain(queues.into_values().flatten()) {
            books.told(&way, Sent { publish, outcome: None, attempts: 0, error: None });
        }
        held
    }
}

impl LifecycleBooks {
    fn told(&self, way: &Way, Sent { publish, outcome, attempts, error }: Sent) {
        if way.tells(&publish.event) {
            self.records.tell(Record::Delivered(Delivered {
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
            Some(Ok(())) if !way.takes(&publish.event) => {}
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

async fn keep(links: Option<Links>) {
    match links {
        Some(links) => links.keep().await,
        None => std::future::pending().await,
    }
}

/// Resolves when containerd has come back; where there is none, never.
fn due(repeats: Option<&Repeats>, way: &Way) -> impl Future<Output = Hears> + use<> {
    let due = match (repeats, way) {
        (Some(repeats), Way::Containerd(link)) => Some(repeats.due(link.clone())),
        _ => None,
    };
    async move {
        match due {
            Some(due) => due.await,
            None => std::future::pending().await,
        }
    }
}

/// An exit, once whoever waits for it was told, with what was told.
async fn told_first(mut publish: Publish, holds: Holds) -> Publish {
    if let TaskEvent::Exit { status, held, .. } = &mut publish.event {
        holds.reached(&publish.signal, *status);
        *status = holds.released(&publish.signal).await.or(*status);
        *held = false;
    }
    publish
}

/// A container's first goes on its way as soon as there is room; those behind it wait for it.
fn enqueue(
    publish: Publish,
    queues: &mut HashMap<String, VecDeque<Publish>>,
    waiting: &mut VecDeque<Publish>,
) {
    match queues.get_mut(&publish.container) {
        Some(queue) => queue.push_back(publish),
        None => {
            queues.insert(publish.container.clone(), VecDeque::new());
            waiting.push_back(publish);
        }
    }
}

async fn given_up(give_up: &mut watch::Receiver<bool>) {
    drop(give_up.wait_for(|it| *it).await);
}
