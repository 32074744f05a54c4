//! Carries rulings out: what the mode lets the router publish goes to the sinks' lanes, everything to the audit.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::arrival::Ack;
use crate::audit::{Planned, PlannedState, Record, Ruled};
use crate::config::Mode;
use crate::counts::Count;
use crate::ruling::Action;
use crate::signal::{Event, Signal};
use crate::sink::Records;
use crate::sink::containerd::{Publish, TaskEvent};
use crate::worker::Verdict;

/// The lane of the one sink that publishes, and what it is called.
#[derive(Debug)]
pub struct Lifecycle {
    /// The sink's name.
    pub sink: String,
    /// For containers whose containerd namespace is not known.
    pub namespace: String,
    /// Its lane.
    pub lane: mpsc::Sender<Publish>,
}

impl Lifecycle {
    fn publish(&self, signal: &Signal, event: TaskEvent) -> Publish {
        let namespace = signal.target.containerd_namespace.as_ref().unwrap_or(&self.namespace);
        Publish {
            signal: signal.id.clone(),
            container: signal.target.container_id.to_string(),
            namespace: namespace.clone(),
            event,
            ruled: Instant::now(),
            ack: None,
        }
    }
}

/// Carries out rulings in the order they come.
#[derive(Debug)]
pub struct Delivery {
    /// From every worker.
    pub rulings: mpsc::Receiver<Verdict>,
    /// Where records go.
    pub records: Records,
    /// Where TaskOOM and TaskExit go.
    pub lifecycle: Option<Lifecycle>,
    /// Kills that came after their container's exit.
    pub late_kills: Arc<Count>,
}

impl Delivery {
    /// Runs until every worker has ended.
    pub async fn run(mut self) {
        while let Some(Verdict { mut record, ack }) = self.rulings.recv().await {
            if matches!(&record.signal.event, Event::OomKill(kill) if kill.late) {
                self.late_kills.one();
            }
            let events = self.plan(&mut record);
            self.records.tell(Record::Ruled(Box::new(record)));
            if !self.publish(events, ack).await {
                return;
            }
        }
    }

    /// Writes down what becomes of each action, and gives the events to publish.
    fn plan(&self, ruled: &mut Ruled) -> VecDeque<Publish> {
        let mut events = VecDeque::new();
        let withheld = |topic: String, because: &str| Planned {
            sink: None,
            topic,
            state: PlannedState::Withheld,
            because: Some(because.to_owned()),
        };
        for action in &ruled.actions {
            let planned = match (event(action, &ruled.signal, ruled.mode), &self.lifecycle) {
                (Err((topic, because)), _) => withheld(topic, because),
                (Ok(event), None) => withheld(event.topic().to_owned(), "no sink publishes to containerd"),
                (Ok(event), Some(lifecycle)) => {
                    let topic = event.topic().to_owned();
                    events.push_back(lifecycle.publish(&ruled.signal, event));
                    Planned {
                        sink: Some(lifecycle.sink.clone()),
                        topic,
                        state: PlannedState::Queued,
                        because: None,
                    }
                }
            };
            ruled.delivery.push(planned);
        }
        events
    }

    /// Queues the events in order. False: the lane is gone, which ends the router.
    async fn publish(&self, mut events: VecDeque<Publish>, ack: Ack) -> bool {
        match events.back_mut() {
            Some(last) => last.ack = Some(ack),
            None => ack.done(),
        }
        for event in events {
            let Some(lifecycle) = &self.lifecycle else { return false };
            if lifecycle.lane.send(event).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// A guest's clock may be wrong by this much, and is taken at its word: a retold exit then has the time it had. Further off it would date a
/// container's end into the past or the future, for everybody to see.
const CLOCK: u64 = 60_000;

fn exited_at_ms(signal: &Signal) -> u64 {
    let received = signal.at.received_ms;
    let near = |wall: &u64| signal.target.guest.is_none() || wall.abs_diff(received) <= CLOCK;
    signal.at.wall_ms.filter(near).unwrap_or(received)
}

/// The event an action becomes in this mode, or its topic and why it goes nowhere.
fn event(action: &Action, signal: &Signal, mode: Mode) -> Result<TaskEvent, (String, &'static str)> {
    match (action, mode) {
        (Action::TaskOom, Mode::Beside | Mode::Sole) => Ok(TaskEvent::Oom),
        (Action::TaskExit(_), Mode::Beside) => {
            Err(("/tasks/exit".to_owned(), "in mode beside the shim publishes exits"))
        }
        (Action::TaskExit(status), Mode::Sole) => {
            let (pid, real) = match &signal.event {
                Event::Exited(exited) => (exited.pid, exited.status),
                Event::OomKill(_)
                | Event::Pressure(_)
                | Event::KillRequest(_)
                | Event::GuestLost(_)
                | Event::Other(_) => (None, None),
            };
            Ok(TaskEvent::Exit {
                exec_id: signal.target.exec_id.clone(),
                pid,
                status: status.or(real),
                exited_at_ms: exited_at_ms(signal),
            })
        }
        (Action::Report(report), Mode::Beside | Mode::Sole) => {
            Err((report.topic.clone(), "no sink takes reports of this topic"))
        }
    }
}
