//! Carries rulings out: what the mode lets the router publish goes to the sinks' lanes, everything to the audit.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::arrival::Ack;
use crate::audit::{self, Planned, PlannedState, Record};
use crate::config::Mode;
use crate::ruling::Action;
use crate::signal::{Event, Signal};
use crate::sink::Records;
use crate::sink::containerd::{Publish, TaskEvent};
use crate::worker::Ruled;

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

/// Carries out rulings in the order they come.
#[derive(Debug)]
pub struct Delivery {
    /// From every worker.
    pub rulings: mpsc::Receiver<Ruled>,
    /// Where records go.
    pub records: Records,
    /// Where TaskOOM and TaskExit go.
    pub lifecycle: Option<Lifecycle>,
}

impl Delivery {
    /// Runs until every worker has ended.
    pub async fn run(mut self) {
        while let Some(ruled) = self.rulings.recv().await {
            let (record, events, ack) = self.plan(ruled);
            self.records.tell(Record::Ruled(Box::new(record)));
            if !self.publish(events, ack).await {
                return;
            }
        }
    }

    /// What becomes of each action, the events to publish, and the ack that goes with the last of them.
    fn plan(&self, ruled: Ruled) -> (audit::Ruled, VecDeque<Publish>, Ack) {
        let mut events = VecDeque::new();
        let plan = |action: &Action| match event(action, &ruled.signal, ruled.origin.mode) {
            Err((topic, because)) => Planned {
                sink: None,
                topic,
                state: PlannedState::Withheld,
                because: Some(because.to_owned()),
            },
            Ok(event) => {
                let topic = event.topic().to_owned();
                let Some(lifecycle) = &self.lifecycle else {
                    let because = Some("no sink publishes to containerd".to_owned());
                    return Planned { sink: None, topic, state: PlannedState::Withheld, because };
                };
                let target = &ruled.signal.target;
                events.push_back(Publish {
                    signal: ruled.signal.id.clone(),
                    container: target.container_id.to_string(),
                    namespace: target
                        .containerd_namespace
                        .clone()
                        .unwrap_or_else(|| lifecycle.namespace.clone()),
                    event,
                    ruled: Instant::now(),
                    ack: None,
                });
                Planned {
                    sink: Some(lifecycle.sink.clone()),
                    topic,
                    state: PlannedState::Queued,
                    because: None,
                }
            }
        };
        let delivery = ruled.outcome.actions.iter().map(plan).collect();
        let record = audit::Ruled {
            source: ruled.origin.source.clone(),
            mode: ruled.origin.mode,
            generation: ruled.generation,
            signal: ruled.signal,
            case: ruled.case,
            draft: ruled.outcome.draft,
            rulings: ruled.outcome.opinions,
            actions: ruled.outcome.actions,
            illegal: ruled.outcome.illegal,
            delivery,
        };
        (record, events, ruled.ack)
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
                exited_at_ms: signal.at.wall_ms.unwrap_or(signal.at.received_ms),
            })
        }
        (Action::Report(report), Mode::Beside | Mode::Sole) => {
            Err((report.topic.clone(), "no sink takes reports of this topic"))
        }
    }
}
