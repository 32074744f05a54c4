//! Delivery: writes rulings to the journal, sends what the mode allows to the lanes of the sinks,
//! and everything to the audit.

mod held;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::held::UnruledSignal;

use self::held::HeldRulings;
use crate::counts::Count;
use crate::worker::{RuledSignal, WorkerOutput};
use coroner_containerd::holds::{Holds, Input};
use coroner_core::audit::{Planned, PlannedState, Record, Resumed, Ruled};
use coroner_core::case::Case;
use coroner_core::mode::Mode;
use coroner_core::ruling::{Action, TaskEvent};
use coroner_core::signal::{BUNDLE, ContainerId, Event, Signal};
use coroner_journal::{Accepting, Journal, Undelivered};
use coroner_sinks::{Fanout, PlannedDelivery, Publish, Task};
use coroner_sources::envelope::{Ack, unix_ms};

/// Rulings per batch: what arrives meanwhile shares one write.
const AT_ONCE: usize = 256;

/// The lane of the lifecycle sink, and its properties.
#[derive(Debug)]
pub struct LifecycleLane {
    /// The sink's name.
    pub sink: String,
    /// For containers without a known containerd namespace.
    pub namespace: String,
    /// An `oom-file` sink: it writes into the container's bundle and takes TaskOOM only.
    pub is_oom_file: bool,
    /// The lane's channel.
    pub lane: mpsc::Sender<Task>,
}

impl LifecycleLane {
    fn namespace<'a>(&'a self, signal: &'a Signal) -> &'a str {
        signal.target.containerd_namespace.as_ref().unwrap_or(&self.namespace)
    }

    /// Why the sink does not take an event; `None`: it does.
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
            exec: signal.target.exec_id.clone(),
            event,
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        }
    }
}

/// Delivers rulings in order.
#[derive(Debug)]
pub struct Delivery {
    /// From every worker.
    pub outputs: mpsc::Receiver<WorkerOutput>,
    /// For audit records, and for events besides containerd.
    pub fanout: Fanout,
    /// Write-ahead log: a ruling is written before it is delivered.
    pub journal: Option<Journal>,
    /// Rulings that an earlier run of this router did not deliver.
    pub resumed: Vec<Undelivered>,
    /// Signals that an earlier run accepted and this one has to rule. Of one container, they are
    /// published before later ones that were ruled then.
    pub unruled: Vec<UnruledSignal>,
    /// For TaskOOM and TaskExit.
    pub lifecycle: Option<LifecycleLane>,
    /// Exits held by a waiting shim.
    pub holds: Holds,
    /// Counts kills that came after their container's exit.
    pub late_kills: Arc<Count>,
}

/// A ruling, the events of its lifecycle, and its deliveries to other sinks.
type PlannedRuling = (Box<RuledSignal>, Vec<TaskEvent>, Vec<PlannedDelivery>);

/// A worker's output, in order.
enum Carried {
    Ruled(PlannedRuling),
    Skipped(ContainerId, String),
}

impl Delivery {
    /// Runs until every worker has ended.
    pub async fn run(mut self) {
        let (free, mut held) = HeldRulings::new(std::mem::take(&mut self.resumed), &self.unruled);
        if !self.resume_all(free).await {
            return;
        }
        let mut outputs = Vec::with_capacity(AT_ONCE);
        while self.outputs.recv_many(&mut outputs, AT_ONCE).await > 0 {
            let mut lines = Accepting::default();
            let mut planned = Vec::with_capacity(outputs.len());
            for output in outputs.drain(..) {
                planned.push(match output {
                    WorkerOutput::Ruled(ruled) => Carried::Ruled(self.planned(ruled, &mut lines)),
                    WorkerOutput::Skipped { container, id } => Carried::Skipped(container, id),
                });
            }
            self.write(lines, &planned).await;
            for carried in planned {
                let (container, id) = match carried {
                    Carried::Skipped(container, id) => (container, id),
                    Carried::Ruled((ruled, events, beside)) => {
                        let Signal { id, target, .. } = &ruled.record.signal;
                        let of = (target.container_id.clone(), id.clone());
                        if !self.carry_out(*ruled, events, beside).await {
                            return;
                        }
                        of
                    }
                };
                if !self.resume_all(held.after(&container, &id)).await {
                    return;
                }
            }
        }
        self.resume_all(held.take_all()).await;
    }

    /// Plans a ruling's deliveries, and adds its line to those to be written.
    fn planned(&self, mut ruled: Box<RuledSignal>, lines: &mut Accepting) -> PlannedRuling {
        if matches!(&ruled.record.signal.event, Event::OomKill(kill) if kill.late) {
            self.late_kills.one();
        }
        let bundle = bundle(&ruled.case, Some(&ruled.record.signal)).map(str::to_owned);
        let (events, beside) = self.plan(&mut ruled.record, bundle.as_deref());
        self.write_down(&ruled, &events, lines);
        (ruled, events, beside)
    }

    async fn write(&self, lines: Accepting, planned: &[Carried]) {
        let Some(journal) = &self.journal else { return };
        // An unwritten ruling is counted there and delivered all the same.
        let written = journal.write(lines).await;
        for carried in planned {
            let Carried::Ruled((ruled, ..)) = carried else { continue };
            // Otherwise recovery would take it for a container that has not ended.
            if ruled.ended() && !(written && ruled.ack.number().is_some()) {
                journal.gone(ruled.record.signal.target.container_id.clone());
            }
        }
    }

    /// False: the lane is gone.
    async fn resume_all(&self, rulings: Vec<Undelivered>) -> bool {
        for undelivered in rulings {
            if !self.resume(undelivered).await {
                return false;
            }
        }
        true
    }

    fn write_down(&self, ruled: &RuledSignal, events: &[TaskEvent], lines: &mut Accepting) {
        let (Some(journal), Some(n)) = (&self.journal, ruled.ack.number()) else { return };
        let signal = &ruled.record.signal;
        let namespace = self.lifecycle.as_ref().map_or("", |lifecycle| lifecycle.namespace(signal));
        let ruled = coroner_journal::RulingRecord {
            n,
            id: Cow::Borrowed(&signal.id),
            source: Cow::Borrowed(&ruled.record.source),
            container: Cow::Borrowed(&signal.target.container_id),
            namespace: Cow::Borrowed(namespace),
            at_ms: signal.at.received_ms,
            events: Cow::Borrowed(events),
            case: Cow::Borrowed(&ruled.case),
        };
        journal.rule(lines, ruled);
    }

    /// False: the lane is gone, which ends the router.
    async fn carry_out(
        &self,
        ruled: RuledSignal,
        events: Vec<TaskEvent>,
        beside: Vec<PlannedDelivery>,
    ) -> bool {
        let ended = ruled.case.oom_sent && ruled.ended();
        let RuledSignal { record, ack, case } = ruled;
        let bundle = bundle(&case, Some(&record.signal));
        let publish = |event| Some(self.lifecycle.as_ref()?.publish(&record.signal, bundle, event));
        let publishes: VecDeque<Publish> = events.into_iter().filter_map(publish).collect();
        let container = record.signal.target.container_id.to_string();
        if matches!(record.signal.event, Event::Exited(_)) {
            self.holds.apply(&record.signal.id, Input::Oom(case.oom_sent));
        }
        if self.lifecycle.is_none() && matches!(record.signal.event, Event::Exited(_)) {
            let ruled = record.actions.iter().find_map(|action| match action {
                Action::TaskExit(status) => Some(*status),
                Action::TaskOom | Action::Report(_) => None,
            });
            self.holds.apply(&record.signal.id, Input::Reached(ruled.flatten()));
        }
        if !matches!(record.signal.event, Event::Forwarded(_)) {
            self.fanout.record(Record::Ruled(Box::new(record)));
        }
        beside.iter().for_each(|planned| self.fanout.send(planned));
        let alive = self.publish(publishes, ack).await;
        match &self.lifecycle {
            // The lane may have to repeat its TaskOOM, and learns here for how long.
            Some(lifecycle) if alive && ended => lifecycle.lane.send(Task::Ended(container)).await.is_ok(),
            _ => alive,
        }
    }

    /// Delivers a recovered ruling unchanged.
    async fn resume(&self, Undelivered { ruled, signal }: Undelivered) -> bool {
        if !ruled.events.iter().all(|event| matches!(event, TaskEvent::Forwarded(_))) {
            self.fanout.record(Record::Resumed(Box::new(Resumed {
                at_ms: unix_ms(),
                id: ruled.id.clone().into_owned(),
                container: ruled.container.to_string(),
                source: ruled.source.clone().into_owned(),
                signal: signal.clone(),
                topics: ruled.events.iter().map(|event| event.topic().to_owned()).collect(),
            })));
        }
        if ruled.events.iter().any(|event| matches!(event, TaskEvent::Exit { .. })) {
            self.holds.apply(&ruled.id, Input::Oom(ruled.case.oom_sent));
        }
        let publish = |event: &TaskEvent| Publish {
            signal: ruled.id.clone().into_owned(),
            container: ruled.container.to_string(),
            namespace: ruled.namespace.clone().into_owned(),
            bundle: bundle(&ruled.case, signal.as_ref()).map(PathBuf::from),
            exec: exec(event, signal.as_ref()).map(str::to_owned),
            event: event.clone(),
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        };
        let publishes: VecDeque<Publish> = ruled.events.iter().map(publish).collect();
        let ack = self.journal.as_ref().map_or_else(Ack::none, |it| Ack::resumed(ruled.n, it.clone()));
        if self.lifecycle.is_none() {
            // The sink was removed from the configuration meanwhile.
            ack.done();
            return true;
        }
        self.publish(publishes, ack).await
    }

    /// Plans the delivery of each action; returns the events to publish, and the deliveries to
    /// other sinks.
    fn plan(&self, ruled: &mut Ruled, bundle: Option<&str>) -> (Vec<TaskEvent>, Vec<PlannedDelivery>) {
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
            let others = self.fanout.plan(signal, at, action, event.as_ref().and_then(TaskEvent::status));
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
                // A withheld exit goes to the lane too: the waiting shim is answered after the
                // kills before it.
                if refused.is_none() || matches!(event, TaskEvent::Exit { .. }) {
                    events.push(event);
                }
            }
            if let Ok(others) = others {
                self.fanout.sinks(&others).for_each(|sink| planned(Some(sink), None));
                beside.push(others);
            }
        }
        (events, beside)
    }

    /// Queues events in order. False: the lane is gone, which ends the router.
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

/// The container's bundle, where its shim reported it; agents never do.
fn bundle<'a>(case: &'a Case, signal: Option<&'a Signal>) -> Option<&'a str> {
    let attributes = case.attributes.iter().chain(signal.into_iter().flat_map(|signal| &signal.attributes));
    attributes.filter(|(key, _)| key == BUNDLE).map(|(_, bundle)| bundle.as_str()).next()
}

/// The exec that an event of an earlier run is about, as far as the journal contains it.
fn exec<'a>(event: &'a TaskEvent, signal: Option<&'a Signal>) -> Option<&'a str> {
    match event {
        TaskEvent::Exit { exec_id, .. } => exec_id.as_deref(),
        TaskEvent::Oom | TaskEvent::Forwarded(_) => signal?.target.exec_id.as_deref(),
    }
}

/// Tolerance of a guest's clock, in milliseconds. Within it the guest's own time is used, so that a
/// repeated exit keeps its time. Beyond it a guest could date a container's end into the past or
/// the future.
const CLOCK: u64 = 60_000;

fn exited_at_ms(signal: &Signal) -> u64 {
    let received = signal.at.received_ms;
    let near = |wall: &u64| signal.target.guest.is_none() || wall.abs_diff(received) <= CLOCK;
    signal.at.wall_ms.filter(near).unwrap_or(received)
}

/// The event of an action in this mode; `Ok(None)`: a report has none. The error is the reason why
/// it is withheld.
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
                | Event::Evidence(_)
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
