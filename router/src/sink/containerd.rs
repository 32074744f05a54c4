//! The sink `containerd`: publishes TaskOOM and TaskExit on containerd's event exchange, in order, until it has them.

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
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Records;
use crate::arrival::Ack;
use crate::audit::{Delivered, DeliveredOutcome, Record};
use crate::counts::SinkCounts;

/// Actions the lane holds. It never drops: when containerd is away for longer than this lasts, sources are read no
/// further, and their agents keep the state of what was not read.
pub const ACTIONS: usize = 4096;
/// One try: containerd answers in under a millisecond, and a socket that hangs must be left for a new one.
const TRY: Duration = Duration::from_secs(2);
/// Between two tries of the head.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(1);
/// What containerd itself puts where an exit status is not known (`UnknownExitStatus`).
const UNKNOWN_STATUS: u32 = 255;

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
    /// Set on the last action of its signal.
    pub ack: Option<Ack>,
}

/// The events published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// `containerd.events.TaskOOM`
    Oom,
    /// `containerd.events.TaskExit`
    Exit {
        /// `None` is the container's init.
        exec_id: Option<String>,
        /// 0 where it is not known, as containerd does.
        pid: Option<u32>,
        /// 255 where it is not known, as containerd does.
        status: Option<u32>,
        /// Unix milliseconds.
        exited_at_ms: u64,
    },
}

impl TaskEvent {
    /// containerd's topic.
    pub fn topic(&self) -> &'static str {
        match self {
            Self::Oom => "/tasks/oom",
            Self::Exit { .. } => "/tasks/exit",
        }
    }

    /// The exit status that is published; `None`: it is not known, or there is none.
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::Oom => None,
            Self::Exit { status, .. } => *status,
        }
    }
}

/// The lane to one containerd.
#[derive(Debug)]
pub struct Containerd {
    /// The sink's name.
    pub name: String,
    /// Its `.ttrpc` socket.
    pub address: PathBuf,
    /// Where outcomes are told.
    pub records: Records,
    /// What is told of it.
    pub counts: Arc<SinkCounts>,
    /// Turns true when the router's time to drain is over.
    pub give_up: watch::Receiver<bool>,
}

impl Containerd {
    /// Publishes until the lane closes, the head again and again until containerd has it. Returns how
    /// many actions it left unsent when told to give up.
    pub async fn run(mut self, mut lane: mpsc::Receiver<Publish>) -> usize {
        let mut link = Link { address: self.address.clone(), client: None, silent: false };
        let mut unsent = 0;
        while let Some(head) = lane.recv().await {
            let request = request(&head);
            let mut attempts = 0;
            let mut error = None;
            let outcome = tokio::select! {
                () = link.publish(&request, &mut attempts, &mut error) => DeliveredOutcome::Acked,
                _ = self.give_up.wait_for(|it| *it) => DeliveredOutcome::Unsent,
            };
            self.records.tell(Record::Delivered(Delivered {
                id: head.signal,
                sink: self.name.clone(),
                topic: head.event.topic().to_owned(),
                outcome,
                attempts,
                waited_ms: u64::try_from(head.ruled.elapsed().as_millis()).unwrap_or(u64::MAX),
                error,
            }));
            self.counts.failed.more(u64::from(attempts.saturating_sub(1)));
            if outcome == DeliveredOutcome::Acked {
                self.counts.delivered.one();
            }
            match (outcome, head.ack) {
                (DeliveredOutcome::Acked, Some(ack)) => ack.done(),
                (DeliveredOutcome::Acked, None) => {}
                (DeliveredOutcome::Unsent | DeliveredOutcome::Dropped, _) => unsent += 1,
            }
        }
        unsent
    }
}

struct Link {
    address: PathBuf,
    client: Option<EventsClient>,
    silent: bool,
}

impl Link {
    /// Tries until containerd has answered.
    async fn publish(&mut self, request: &ForwardRequest, attempts: &mut u32, last: &mut Option<String>) {
        let mut gaps = backon::ExponentialBuilder::default()
            .with_min_delay(FIRST_GAP)
            .with_max_delay(LONGEST_GAP)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            *attempts = attempts.saturating_add(1);
            match self.once(request).await {
                Ok(()) => break,
                Err(error) => {
                    if !self.silent {
                        tracing::warn!(address = %self.address.display(), error, "containerd does not answer");
                    }
                    self.silent = true;
                    self.client = None;
                    *last = Some(error);
                }
            }
            tokio::time::sleep(gaps.next().unwrap_or(LONGEST_GAP)).await;
        }
        if self.silent {
            tracing::info!(address = %self.address.display(), "containerd answers again");
            self.silent = false;
        }
    }

    async fn once(&mut self, request: &ForwardRequest) -> Result<(), String> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let address = format!("unix://{}", self.address.display());
                let connected = tokio::time::timeout(TRY, Client::connect(&address)).await;
                let client = connected
                    .map_err(|_| "no connection in time".to_owned())?
                    .map_err(|it| it.to_string())?;
                self.client.insert(EventsClient::new(client))
            }
        };
        let context = ttrpc::context::with_duration(TRY);
        client.forward(context, request).await.map(drop).map_err(|error| error.to_string())
    }
}

fn request(publish: &Publish) -> ForwardRequest {
    let (name, value) = match &publish.event {
        TaskEvent::Oom => {
            let event = TaskOOM { container_id: publish.container.clone(), ..TaskOOM::default() };
            ("containerd.events.TaskOOM", event.write_to_bytes())
        }
        TaskEvent::Exit { exec_id, pid, status, exited_at_ms } => {
            let event = TaskExit {
                container_id: publish.container.clone(),
                id: exec_id.clone().unwrap_or_else(|| publish.container.clone()),
                pid: pid.unwrap_or(0),
                exit_status: status.unwrap_or(UNKNOWN_STATUS),
                exited_at: MessageField::some(timestamp(*exited_at_ms)),
                ..TaskExit::default()
            };
            ("containerd.events.TaskExit", event.write_to_bytes())
        }
    };
    let event = Any {
        // containerd 1.6 ignores an event whose URL has the `type.googleapis.com/` prefix.
        type_url: name.to_owned(),
        value: value.expect("a message of strings and numbers always encodes"),
        ..Any::default()
    };
    let envelope = Envelope {
        timestamp: MessageField::some(Timestamp::now()),
        namespace: publish.namespace.clone(),
        topic: publish.event.topic().to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() }
}

fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ms % 1000).expect("under a thousand") * 1_000_000,
        ..Timestamp::default()
    }
}
