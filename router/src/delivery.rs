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
use crate::sink::containerd::{Publish, TaskEvent};
use crate::sink::{Outlets, Planning};
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
    /// Where records go, and events beside containerd.
    pub outlets: Outlets,
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
            let (events, beside) = self.plan(&mut record);
            self.outlets.tell(Record::Ruled(Box::new(record)));
            beside.iter().for_each(|planned| self.outlets.send(planned));
            if !self.publish(events, ack).await {
                return;
            }
        }
    }

    /// Writes down what becomes of each action, and gives the events to publish, and what goes to other sinks.
    fn plan(&self, ruled: &mut Ruled) -> (VecDeque<Publish>, Vec<Planning>) {
        let (mut events, mut beside) = (VecDeque::new(), Vec::new());
        let signal = &ruled.signal;
        for (at, action) in ruled.actions.iter().enumerate() {
            let mut planned = |sink: Option<&str>, because: Option<&str>| {
                ruled.delivery.push(Planned {
                    sink: sink.map(str::to_owned),
                    topic: action.topic().to_owned(),
                    state: if sink.is_some() { PlannedState::Queued } else { PlannedState::Withheld },
                    because: because.map(str::to_owned),
                });
            };
            let event = match event(action, signal, ruled.mode) {
                Ok(event) => event,
                Err(because) => {
                    planned(None, Some(because));
                    continue;
                }
            };
            let others = self.outlets.plan(signal, at, action, event.as_ref().and_then(TaskEvent::status));
            let report = event.is_none();
            let published = event.zip(self.lifecycle.as_ref());
            match (&published, &others) {
                (None, Err(because)) if report => planned(None, Some(because)),
                (None, Err(_)) => {
                    planned(None, Some("no sink publishes to containerd, and no route takes it"))
                }
                (None, Ok(_)) | (Some(_), Ok(_) | Err(_)) => {}
            }
            if let Some((event, lifecycle)) = published {
                planned(Some(&lifecycle.sink), None);
                events.push_back(lifecycle.publish(signal, event));
            }
            if let Ok(others) = others {
                self.outlets.sinks(&others).for_each(|sink| planned(Some(sink), None));
                beside.push(others);
            }
        }
        (events, beside)
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

/// The event an action becomes in this mode; `Ok(None)`: a report is none. Else why it goes nowhere.
fn event(action: &Action, signal: &Signal, mode: Mode) -> Result<Option<TaskEvent>, &'static str> {
    match (action, mode) {
        (Action::TaskOom, Mode::Beside | Mode::Sole) => Ok(Some(TaskEvent::Oom)),
        (Action::TaskExit(_), Mode::Beside) => Err("in mode beside the shim publishes exits"),
        (Action::TaskExit(status), Mode::Sole) => {
            let (pid, real) = match &signal.event {
                Event::Exited(exited) => (exited.pid, exited.status),
                Event::OomKill(_)
                | Event::Pressure(_)
                | Event::KillRequest(_)
                | Event::GuestLost(_)
                | Event::Other(_) => (None, None),
            };
            Ok(Some(TaskEvent::Exit {
                exec_id: signal.target.exec_id.clone(),
                pid,
                status: status.or(real),
                exited_at_ms: exited_at_ms(signal),
            }))
        }
        (Action::Report(_), Mode::Beside | Mode::Sole) => Ok(None),
    }
}
