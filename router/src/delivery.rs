//! Carries rulings out: what the mode lets the router publish goes to the sinks' lanes, everything to the audit.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::arrival::{Ack, unix_ms};
use crate::audit::{Planned, PlannedState, Record, Resumed, Ruled};
use crate::case::Case;
use crate::config::Mode;
use crate::counts::Count;
use crate::holds::Holds;
use crate::journal::{self, Accepting, Journal, Undelivered};
use crate::ruling::{Action, TaskEvent};
use crate::signal::{Event, Signal};
use crate::sink::{Outlets, Planning, Publish, Task};
use crate::worker::Verdict;

/// Rulings carried out at once: what has come meanwhile is written together.
const AT_ONCE: usize = 256;

/// The lane of the one sink that publishes, and what it is called.
#[derive(Debug)]
pub struct Lifecycle {
    /// The sink's name.
    pub sink: String,
    /// For containers whose containerd namespace is not known.
    pub namespace: String,
    /// Its file is in a container's bundle, and it tells nothing but TaskOOM.
    pub is_oom_file: bool,
    /// Its lane.
    pub lane: mpsc::Sender<Task>,
}

impl Lifecycle {
    fn namespace<'a>(&'a self, signal: &'a Signal) -> &'a str {
        signal.target.containerd_namespace.as_ref().unwrap_or(&self.namespace)
    }

    /// Why it does not take an event, if so.
    fn refuses(&self, event: &TaskEvent, bundle: Option<&str>) -> Option<&'static str> {
        match event {
            _ if !self.is_oom_file => None,
            TaskEvent::Oom if bundle.is_some() => None,
            TaskEvent::Oom => Some("its bundle is not known: no wrapped shim has told its creation"),
            TaskEvent::Exit { .. } => Some("CRI-O learns of exits from the shim's own answer"),
            TaskEvent::Forwarded(_) => Some("CRI-O takes in no events"),
        }
    }

    fn publish(&self, signal: &Signal, bundle: Option<&str>, event: TaskEvent) -> Publish {
        Publish {
            bundle: bundle.map(PathBuf::from),
            signal: signal.id.clone(),
            container: signal.target.container_id.to_string(),
            namespace: self.namespace(signal).to_owned(),
            event,
            ruled: Instant::now(),
            repeat: false,
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
    /// Where rulings are written before they are delivered.
    pub journal: Option<Journal>,
    /// Ruled by an earlier run of this router, and not delivered.
    pub resumed: Vec<Undelivered>,
    /// Where TaskOOM and TaskExit go.
    pub lifecycle: Option<Lifecycle>,
    /// Exits that somebody waits for.
    pub holds: Holds,
    /// Kills that came after their container's exit.
    pub late_kills: Arc<Count>,
}

impl Delivery {
    /// Runs until every worker has ended.
    pub async fn run(mut self) {
        for undelivered in std::mem::take(&mut self.resumed) {
            if !self.resume(undelivered).await {
                return;
            }
        }
        let mut verdicts = Vec::with_capacity(AT_ONCE);
        while self.rulings.recv_many(&mut verdicts, AT_ONCE).await > 0 {
            let mut lines = Accepting::default();
            let mut planned = Vec::with_capacity(verdicts.len());
            for mut verdict in verdicts.drain(..) {
                if matches!(&verdict.record.signal.event, Event::OomKill(kill) if kill.late) {
                    self.late_kills.one();
                }
                let bundle = bundle(&verdict.case, Some(&verdict.record.signal)).map(str::to_owned);
                let (events, beside) = self.plan(&mut verdict.record, bundle.as_deref());
                self.write_down(&verdict, &events, &mut lines);
                planned.push((verdict, events, beside));
            }
            if let Some(journal) = &self.journal {
                // What is not written is counted there, and delivered all the same.
                let written = journal.write(lines).await;
                for (verdict, ..) in &planned {
                    // It would else be taken for one whose end nobody saw.
                    if verdict.ended() && !(written && verdict.ack.number().is_some()) {
                        journal.gone(verdict.record.signal.target.container_id.clone());
                    }
                }
            }
            for (verdict, events, beside) in planned {
                if !self.carry_out(verdict, events, beside).await {
                    return;
                }
            }
        }
    }

    fn write_down(&self, verdict: &Verdict, events: &[TaskEvent], lines: &mut Accepting) {
        let (Some(journal), Some(n)) = (&self.journal, verdict.ack.number()) else { return };
        let signal = &verdict.record.signal;
        let namespace = self.lifecycle.as_ref().map_or("", |lifecycle| lifecycle.namespace(signal));
        let ruled = journal::Ruled {
            n,
            id: Cow::Borrowed(&signal.id),
            source: Cow::Borrowed(&verdict.record.source),
            container: Cow::Borrowed(&signal.target.container_id),
            namespace: Cow::Borrowed(namespace),
            at_ms: signal.at.received_ms,
            events: Cow::Borrowed(events),
            case: Cow::Borrowed(&verdict.case),
        };
        journal.rule(lines, ruled);
    }

    /// False: the lane is gone, which ends the router.
    async fn carry_out(&self, verdict: Verdict, events: Vec<TaskEvent>, beside: Vec<Planning>) -> bool {
        let ended = verdict.case.oom_sent && verdict.ended();
        let Verdict { record, ack, case } = verdict;
        let bundle = bundle(&case, Some(&record.signal));
        let publish = |event| Some(self.lifecycle.as_ref()?.publish(&record.signal, bundle, event));
        let publishes: VecDeque<Publish> = events.into_iter().filter_map(publish).collect();
        let container = record.signal.target.container_id.to_string();
        if self.lifecycle.is_none() && matches!(record.signal.event, Event::Exited(_)) {
            let ruled = record.actions.iter().find_map(|action| match action {
                Action::TaskExit(status) => Some(*status),
                Action::TaskOom | Action::Report(_) => None,
            });
            self.holds.reached(&record.signal.id, ruled.flatten());
        }
        if !matches!(record.signal.event, Event::Forwarded(_)) {
            self.outlets.tell(Record::Ruled(Box::new(record)));
        }
        beside.iter().for_each(|planned| self.outlets.send(planned));
        let alive = self.publish(publishes, ack).await;
        match &self.lifecycle {
            // Whose TaskOOM may have to be sent again, for how long yet.
            Some(lifecycle) if alive && ended => lifecycle.lane.send(Task::Ended(container)).await.is_ok(),
            _ => alive,
        }
    }

    /// Delivers what was ruled before, as it was ruled.
    async fn resume(&self, Undelivered { ruled, signal }: Undelivered) -> bool {
        if !ruled.events.iter().all(|event| matches!(event, TaskEvent::Forwarded(_))) {
            self.outlets.tell(Record::Resumed(Box::new(Resumed {
                at_ms: unix_ms(),
                id: ruled.id.clone().into_owned(),
                container: ruled.container.to_string(),
                source: ruled.source.clone().into_owned(),
                signal: signal.clone(),
                topics: ruled.events.iter().map(|event| event.topic().to_owned()).collect(),
            })));
        }
        let publish = |event: &TaskEvent| Publish {
            signal: ruled.id.clone().into_owned(),
            container: ruled.container.to_string(),
            namespace: ruled.namespace.clone().into_owned(),
            bundle: bundle(&ruled.case, signal.as_ref()).map(PathBuf::from),
            event: event.clone(),
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        };
        let publishes: VecDeque<Publish> = ruled.events.iter().map(publish).collect();
        let ack = self.journal.as_ref().map_or_else(Ack::nobody, |it| Ack::resumed(ruled.n, it.clone()));
        if self.lifecycle.is_none() {
            // The sink was taken out of the configuration meanwhile.
            ack.done();
            return true;
        }
        self.publish(publishes, ack).await
    }

    /// Says what becomes of each action, and gives the events to publish, and what goes to other sinks.
    fn plan(&self, ruled: &mut Ruled, bundle: Option<&str>) -> (Vec<TaskEvent>, Vec<Planning>) {
        let (mut events, mut beside) = (Vec::new(), Vec::new());
        let signal = &ruled.signal;
        if let (Event::Forwarded(event), Some(lifecycle)) = (&signal.event, &self.lifecycle)
            && !lifecycle.is_oom_file
        {
            events.push(TaskEvent::Forwarded(event.clone()));
        }
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
                let refused = lifecycle.refuses(&event, bundle);
                match refused {
                    None => planned(Some(&lifecycle.sink), None),
                    Some(because) => planned(None, Some(because)),
                }
                // An exit all the same: who waits for it is answered behind the kills before it.
                if refused.is_none() || matches!(event, TaskEvent::Exit { .. }) {
                    events.push(event);
                }
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
            if lifecycle.lane.send(Task::Publish(Box::new(event))).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Where a container's shim said its bundle is; no agent says that of one.
fn bundle<'a>(case: &'a Case, signal: Option<&'a Signal>) -> Option<&'a str> {
    let said = case.attributes.iter().chain(signal.into_iter().flat_map(|signal| &signal.attributes));
    said.filter(|(key, _)| key == "bundle").map(|(_, bundle)| bundle.as_str()).next()
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
        (Action::TaskOom, Mode::Beside | Mode::Wrapped | Mode::Proxy | Mode::Sole) => {
            Ok(Some(TaskEvent::Oom))
        }
        (Action::TaskExit(_), Mode::Beside) => Err("in mode beside the shim publishes exits"),
        (Action::TaskExit(status), Mode::Wrapped | Mode::Proxy | Mode::Sole) => {
            let (pid, real, at_ns) = match &signal.event {
                Event::Exited(exited) => (exited.pid, exited.status, exited.at_ns),
                Event::OomKill(_)
                | Event::Pressure(_)
                | Event::KillRequest(_)
                | Event::GuestLost(_)
                | Event::Other(_)
                | Event::Forwarded(_) => (None, None, None),
            };
            let rest = at_ns.map_or(0, |at| at % 1_000_000);
            Ok(Some(TaskEvent::Exit {
                exec_id: signal.target.exec_id.clone(),
                pid,
                status: status.or(real),
                exited_at_ms: at_ns.map_or_else(|| exited_at_ms(signal), |at| at / 1_000_000),
                exited_at_rest_ns: u32::try_from(rest).expect("under a million"),
                held: mode == Mode::Proxy,
            }))
        }
        (Action::Report(_), Mode::Beside | Mode::Wrapped | Mode::Proxy | Mode::Sole) => Ok(None),
    }
}
