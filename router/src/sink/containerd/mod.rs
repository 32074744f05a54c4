//! The sink `containerd`: publishes TaskOOM and TaskExit on containerd's event exchange, each container's in order, until it has them.

mod link;
mod repeats;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use ttrpc::Code;

use self::link::{Link, Links};
use self::repeats::Repeats;
use super::Records;
use crate::arrival::Ack;
use crate::audit::{Delivered, DeliveredOutcome, Record};
use crate::counts::SinkCounts;
use crate::holds::Holds;
use crate::journal::Published;
use crate::ruling::TaskEvent;

/// Actions the lane holds. It never drops: when containerd is away for longer than this lasts, sources are read no
/// further, and their agents keep the state of what was not read.
pub const ACTIONS: usize = 4096;
/// Containers whose events are on their way at once: containerd answers in under a millisecond, more would only wait there.
const AT_ONCE: usize = 64;
/// One try: a socket that hangs must be left for a new one.
const TRY: Duration = Duration::from_secs(2);
/// Between two tries of an event that containerd refuses.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(1);
/// What containerd itself puts where an exit status is not known (`UnknownExitStatus`).
const UNKNOWN_STATUS: u32 = 255;

/// What the lane is handed.
#[derive(Debug)]
pub enum Task {
    /// Something to publish.
    Publish(Box<Publish>),
    /// A container has ended, whoever publishes that.
    Ended(String),
}

/// An event to publish.
#[derive(Debug)]
pub struct Publish {
    /// The signal's id.
    pub signal: String,
    /// Its container.
    pub container: String,
    /// Its containerd namespace.
    pub namespace: String,
    /// Which event.
    pub event: TaskEvent,
    /// When it was ruled.
    pub ruled: Instant,
    /// It was published before, and containerd has come back since.
    pub repeat: bool,
    /// Set on the last action of its signal.
    pub ack: Option<Ack>,
}

impl Publish {
    fn is_held(&self) -> bool {
        matches!(self.event, TaskEvent::Exit { held: true, .. })
    }

    fn outcome(&self) -> DeliveredOutcome {
        if self.repeat { DeliveredOutcome::Repeated } else { DeliveredOutcome::Acked }
    }
}

/// The lane to one containerd.
#[derive(Debug)]
pub struct Containerd {
    /// The sink's name.
    pub name: String,
    /// Its `.ttrpc` socket.
    pub address: PathBuf,
    /// Its gRPC socket, where CRI answers when it is ready.
    pub grpc_address: Option<PathBuf>,
    /// Where outcomes are told.
    pub records: Records,
    /// What is told of it.
    pub counts: Arc<SinkCounts>,
    /// TaskOOMs that an earlier run of this router published.
    pub published: Vec<Published>,
    /// Exits that somebody waits for.
    pub holds: Holds,
    /// Turns true when the router's time to drain is over.
    pub give_up: watch::Receiver<bool>,
}

/// An event that containerd has, or that was given up.
struct Sent {
    publish: Publish,
    outcome: DeliveredOutcome,
    attempts: u32,
    error: Option<String>,
}

impl Containerd {
    /// Publishes until the lane closes, the head of each container again and again until containerd has it. Returns how
    /// many actions it left unsent when told to give up.
    pub async fn run(mut self, mut lane: mpsc::Receiver<Task>) -> usize {
        let links = Links::new(self.address.clone());
        let link = links.link();
        let mut repeats = Repeats::new(self.grpc_address.take(), std::mem::take(&mut self.published));
        let mut give_up = self.give_up.clone();
        // Per container: what waits behind the one that is on its way.
        let mut queues: HashMap<String, VecDeque<Publish>> = HashMap::new();
        let (mut waiting, mut flying, mut held, mut open) =
            (VecDeque::new(), FuturesUnordered::new(), 0_usize, true);
        // Exits whose turn it is, and that whoever waits for is to be told first.
        let mut kept = FuturesUnordered::new();
        let keeping = links.keep();
        let repeating = repeats.due(link.clone());
        tokio::pin!(keeping, repeating);
        while open || held > 0 {
            tokio::select! {
                task = lane.recv(), if open && held < ACTIONS => match task {
                    None => open = false,
                    Some(Task::Ended(container)) => repeats.ended(&container),
                    Some(Task::Publish(publish)) => {
                        held += 1;
                        enqueue(*publish, &mut queues, &mut waiting);
                    }
                },
                Some(sent) = flying.next() => {
                    let Sent { publish, .. } = &sent;
                    held -= 1;
                    repeats.published(publish);
                    let container = publish.container.clone();
                    self.told(sent);
                    match queues.get_mut(&container).and_then(VecDeque::pop_front) {
                        Some(next) => waiting.push_back(next),
                        None => drop(queues.remove(&container)),
                    }
                }
                Some(publish) = kept.next() => waiting.push_front(publish),
                hears = &mut repeating => {
                    for publish in repeats.take(hears) {
                        held += 1;
                        enqueue(publish, &mut queues, &mut waiting);
                    }
                    repeating.set(repeats.due(link.clone()));
                }
                () = &mut keeping => {}
                _ = give_up.wait_for(|it| *it) => break,
            }
            while flying.len() < AT_ONCE
                && let Some(publish) = waiting.pop_front()
            {
                if publish.is_held() {
                    kept.push(told_first(publish, self.holds.clone()));
                    continue;
                }
                if let TaskEvent::Exit { status, .. } = &publish.event {
                    self.holds.reached(&publish.signal, *status);
                }
                let (link, mut give_up) = (link.clone(), self.give_up.clone());
                flying.push(async move {
                    let (mut attempts, mut error) = (0, None);
                    let outcome = tokio::select! {
                        () = send(&publish, link, &mut attempts, &mut error) => publish.outcome(),
                        () = given_up(&mut give_up) => DeliveredOutcome::Unsent,
                    };
                    Sent { publish, outcome, attempts, error }
                });
            }
        }
        // Given up: what is in the journal stays there, and who waits for the rest hears nothing.
        while let Some(sent) = flying.next().await {
            self.told(sent);
        }
        drop(kept);
        for publish in waiting.into_iter().chain(queues.into_values().flatten()) {
            self.told(Sent { publish, outcome: DeliveredOutcome::Unsent, attempts: 0, error: None });
        }
        held
    }

    fn told(&self, Sent { publish, outcome, attempts, error }: Sent) {
        let forwarded = matches!(publish.event, TaskEvent::Forwarded(_));
        let record = Record::Delivered(Delivered {
            id: publish.signal,
            sink: self.name.clone(),
            topic: publish.event.topic().to_owned(),
            outcome,
            attempts,
            waited_ms: u64::try_from(publish.ruled.elapsed().as_millis()).unwrap_or(u64::MAX),
            error,
        });
        if !forwarded {
            self.records.tell(record);
        }
        self.counts.failed.more(u64::from(attempts.saturating_sub(1)));
        if outcome == DeliveredOutcome::Unsent {
            return;
        }
        self.counts.delivered.one();
        if let Some(ack) = publish.ack {
            ack.done();
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

/// Tries until containerd has it.
async fn send(publish: &Publish, mut link: Link, attempts: &mut u32, error: &mut Option<String>) {
    let request = request(publish);
    let mut gaps = backon::ExponentialBuilder::default()
        .with_min_delay(FIRST_GAP)
        .with_max_delay(LONGEST_GAP)
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        let (generation, client) = link.up().await;
        *attempts = attempts.saturating_add(1);
        match client.forward(ttrpc::context::with_duration(TRY), &request).await {
            Ok(_) => return,
            // It answers, and does not take it: on the same link, later.
            Err(ttrpc::Error::RpcStatus(status)) if status.code() != Code::DEADLINE_EXCEEDED => {
                *error = Some(status.message().to_owned());
                tokio::time::sleep(gaps.next().unwrap_or(LONGEST_GAP)).await;
            }
            Err(broken) => {
                *error = Some(broken.to_string());
                link.doubt(generation, &broken).await;
            }
        }
    }
}

fn request(publish: &Publish) -> ForwardRequest {
    let (name, value) = match &publish.event {
        TaskEvent::Oom => {
            let event = TaskOOM { container_id: publish.container.clone(), ..TaskOOM::default() };
            ("containerd.events.TaskOOM", event.write_to_bytes())
        }
        TaskEvent::Exit { exec_id, pid, status, exited_at_ms, exited_at_rest_ns, held: _ } => {
            let event = TaskExit {
                container_id: publish.container.clone(),
                id: exec_id.clone().unwrap_or_else(|| publish.container.clone()),
                pid: pid.unwrap_or(0),
                exit_status: status.unwrap_or(UNKNOWN_STATUS),
                exited_at: MessageField::some(timestamp(*exited_at_ms, *exited_at_rest_ns)),
                ..TaskExit::default()
            };
            ("containerd.events.TaskExit", event.write_to_bytes())
        }
        TaskEvent::Forwarded(event) => (event.type_url.as_str(), Ok(event.value.clone())),
    };
    let event = Any {
        // containerd 1.6 ignores an event whose URL has the `type.googleapis.com/` prefix.
        type_url: name.to_owned(),
        value: value.expect("a message of strings and numbers always encodes"),
        ..Any::default()
    };
    let published = match &publish.event {
        TaskEvent::Forwarded(event) => {
            event.published_ns.map(|at| timestamp(at / 1_000_000, (at % 1_000_000) as u32))
        }
        TaskEvent::Oom | TaskEvent::Exit { .. } => None,
    };
    let published = published.unwrap_or_else(Timestamp::now);
    let envelope = Envelope {
        timestamp: MessageField::some(published),
        namespace: publish.namespace.clone(),
        topic: publish.event.topic().to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() }
}

fn timestamp(unix_ms: u64, rest_ns: u32) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ms % 1000).expect("under a thousand") * 1_000_000
            + i32::try_from(rest_ns).unwrap_or(0),
        ..Timestamp::default()
    }
}
