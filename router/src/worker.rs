//! A worker: one OS thread that owns the cases of its containers and its instances of the policies,
//! and rules on each signal.
//! The field's name: sharding, partitioning.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::intake::{NamedSignal, WorkerTask};
use coroner_core::audit::Ruled;
use coroner_core::case::Case;
use coroner_core::cause;
use coroner_core::fair_map::FairMap;
use coroner_core::mode::Known;
use coroner_core::ruling::Outcome;
use coroner_core::signal::{
    BUNDLE, ContainerId, Event, Evidence, Exited, KILLS_UNKNOWN, Level, OomKilled, SAME_KILL, Signal,
};
use coroner_policy::{ActiveChain, Chain, Host};
use coroner_sources::envelope::{Ack, Envelope};

/// Cases kept of containers that have exited, for late kills. Without a bound a node that runs
/// short jobs for a year would keep the case of each one.
const DEPARTED: usize = 1024;
/// Cases kept in all. Without a bound the case of a container would stay for good if its exit is
/// never reported. Eviction is fair: a guest could otherwise make up names until the kills of
/// another's containers are forgotten before their exits come.
const CASES: usize = 16_384;

/// A ruled signal, for delivery.
#[derive(Debug)]
pub struct RuledSignal {
    /// The audit record, without its deliveries.
    pub record: Ruled,
    /// The container's case after the ruling.
    pub case: Case,
    /// Acknowledges the signal.
    pub ack: Ack,
}

impl RuledSignal {
    /// Whether the signal ended its container.
    pub fn ended(&self) -> bool {
        self.record.case.exit.is_none() && self.case.exit.is_some()
    }
}

/// What a worker has done with a signal.
#[derive(Debug)]
pub enum WorkerOutput {
    /// It was ruled.
    Ruled(Box<RuledSignal>),
    /// It is a duplicate, and is not ruled again.
    Skipped {
        /// The signal's container.
        container: ContainerId,
        /// The signal's id.
        id: String,
    },
}

/// A container's id, source and case, recovered from the journal.
pub type RecoveredCase = (ContainerId, String, Case);

/// Rules on the signals of its containers.
#[derive(Debug)]
pub struct Worker {
    /// The worker's own instances.
    chain: Chain,
    active_chain: ActiveChain,
    cases: HashMap<ContainerId, Case>,
    /// Containers with a case from the journal that has had no kill since: a crash may have lost
    /// the ruling of its last one.
    recovered: HashSet<ContainerId>,
    by_owner: FairMap,
    departed: FairMap,
}

impl Worker {
    /// A worker that starts with the recovered cases.
    pub fn new(host: Arc<Host>, active_chain: ActiveChain, cases: Vec<RecoveredCase>) -> Self {
        let chain = Chain::new(host, &active_chain.now());
        let (mut by_owner, mut departed) = (FairMap::new(CASES), FairMap::new(DEPARTED));
        for (id, source, case) in &cases {
            // The journal keeps no more of them than this.
            by_owner.add(id, source);
            if case.exit.is_some() {
                departed.add(id, source);
            }
        }
        let cases: HashMap<_, _> = cases.into_iter().map(|(id, _, case)| (id, case)).collect();
        let recovered = cases.keys().cloned().collect();
        Self { chain, active_chain, cases, recovered, by_owner, departed }
    }

    /// Rules until the channel closes. Blocks: it runs on its own thread.
    pub fn run(mut self, mut tasks: mpsc::Receiver<WorkerTask>, outputs: &mpsc::Sender<WorkerOutput>) {
        while let Some(task) = tasks.blocking_recv() {
            if let Some(output) = self.step(task)
                && outputs.blocking_send(output).is_err()
            {
                return;
            }
        }
    }

    /// Handles one message. `None`: it is not about a signal.
    pub(crate) fn step(&mut self, task: WorkerTask) -> Option<WorkerOutput> {
        // Between two signals: each signal is ruled by one generation.
        if let Some(snapshot) = self.active_chain.after(self.chain.generation) {
            self.chain.swap(&snapshot);
        }
        let WorkerTask::Rule(named) = task else { return None };
        let signal = &named.envelope.signal;
        if self.has_ruled(signal) {
            tracing::debug!(id = signal.id, "duplicate kill skipped: another source reported it");
            let Envelope { signal, ack, .. } = named.envelope;
            ack.done();
            return Some(WorkerOutput::Skipped { container: signal.target.container_id, id: signal.id });
        }
        Some(WorkerOutput::Ruled(Box::new(self.rule(*named))))
    }

    /// Deduplicates kills: an agent and a shim's source may read the same counter. Not after the
    /// end of a container that may have been restarted: that begins a new counter. Nor after a
    /// crash that lost the ruling.
    fn has_ruled(&self, signal: &Signal) -> bool {
        match (&signal.event, self.cases.get(&signal.target.container_id)) {
            (Event::OomKill(kill), Some(case)) if is_one_life(case, signal) => {
                !adds(kill, case) && is_counted(kill, case) && !counts(&self.recovered, case, signal)
            }
            _ => false,
        }
    }

    /// Rules on one signal and updates its case.
    pub fn rule(&mut self, named: NamedSignal) -> RuledSignal {
        let NamedSignal { envelope, known, memory_limit, seen_exit } = named;
        let mut signal = envelope.signal;
        let id = signal.target.container_id.clone();
        let source = &envelope.origin.source;
        if !self.cases.contains_key(&id)
            && let Some(gone) = self.by_owner.add(&id, source)
        {
            self.cases.remove(&gone);
            self.departed.remove(&gone);
        }
        let case = self.cases.entry(id.clone()).or_default();
        if case.exit.is_some() && matches!(&signal.event, Event::Forwarded(event) if event.is_creation()) {
            // The container runs again, under the same id.
            *case = Case::default();
            self.departed.remove(&id);
        }
        let uncounted = signal.attributes.iter().any(|(key, _)| key == KILLS_UNKNOWN);
        let is_exit = matches!(signal.event, Event::Exited(_));
        if is_exit && !uncounted && known.contains(&Known::KillCount) {
            // The counter was read at this exit, whatever an earlier run's was.
            case.known.push(Known::KillCount);
        }
        case.set_known(&known);
        if let Some(limit) = memory_limit.filter(|_| case.memory_limit.is_none()) {
            case.learn_limit(signal.at, limit);
        }
        case.memory_last = envelope.usage_bytes.or(case.memory_last);
        case.describe(&envelope.attributes);
        if is_exit && uncounted {
            case.forget_kill_count();
        }
        relate(&mut signal, seen_exit.as_deref(), case);
        // A recording has the attribute as it was ruled then.
        signal.attributes.retain(|(key, _)| key != SAME_KILL);
        let is_step = is_step(&self.recovered, case, &signal);
        if is_step {
            signal.attributes.push((SAME_KILL.to_owned(), "true".to_owned()));
            repeat(&mut signal, case);
        }
        let outcome = match &signal.event {
            // Forwarded unchanged: there is nothing to rule on.
            Event::Forwarded(_) => Outcome::default(),
            // One kill is ruled once.
            Event::OomKill(_) if is_step => Outcome::default(),
            _ => self.chain.rule(&signal, case),
        };
        let before = case.clone();
        let counted = counts(&self.recovered, case, &signal).then_some(case.kills);
        match is_step {
            true => case.add_step(&signal),
            false => case.update(&signal, &outcome.actions),
        }
        case.kills = counted.unwrap_or(case.kills);
        if matches!(signal.event, Event::OomKill(_)) {
            self.recovered.remove(&id);
        }
        let after = case.clone();
        if before.exit.is_none()
            && case.exit.is_some()
            && let Some(gone) = self.departed.add(&id, source)
        {
            self.cases.remove(&gone);
            self.by_owner.remove(&gone);
        }
        let record = Ruled {
            source: envelope.origin.source.clone(),
            mode: envelope.origin.mode,
            generation: self.chain.generation,
            signal,
            case: before,
            draft: outcome.draft,
            rulings: outcome.opinions,
            actions: outcome.actions,
            shadow: outcome.shadow,
            illegal: outcome.illegal,
            delivery: Vec::new(),
        };
        RuledSignal { record, case: after, ack: envelope.ack }
    }
}

/// Whether a report is about the same run of the container as its case. After its exit only where
/// its shim reports its creation, which begins a new case, and just after the kill: the container
/// may run again while no router is there for its shim.
fn is_one_life(case: &Case, signal: &Signal) -> bool {
    let is_wrapped = || case.attributes.iter().any(|(key, _)| key == BUNDLE);
    case.exit.is_none() || is_wrapped() && case.is_near_last_kill(signal)
}

/// Whether the kill that was ruled first, of a child within the container, turns out to be that of
/// a whole cgroup, which may have been all of the container. It is ruled once more.
fn shows_the_group(case: &Case, signal: &Signal) -> bool {
    match (&signal.event, &case.last_kill) {
        (Event::OomKill(kill), Some((_, last))) => {
            let is_new = kill.group == Some(true) && last.group != Some(true);
            is_new && last.level == Level::Child && !case.oom_sent
        }
        _ => false,
    }
}

/// Whether the case has this kill by its count. Without the container's counter a witness may count
/// fewer: the kernel's log has one record for a group of processes. After the exit a lower count is
/// an earlier read of the counter.
fn is_counted(kill: &OomKilled, case: &Case) -> bool {
    match (kill.total, case.kills_total()) {
        (Some(total), Some(known)) if kill.evidence == Evidence::Announced || case.exit.is_some() => {
            total <= known
        }
        (total, known) => total.is_some() && total == known,
    }
}

/// Whether this is another report of the last kill, with a victim or a level that the first lacks.
fn adds(kill: &OomKilled, case: &Case) -> bool {
    let last = case.last_kill.as_ref().map(|(_, last)| last);
    last.is_some_and(|last| kill.total.is_some() && kill.total == last.total && last.lacks(kill))
}

/// Whether the recovered case has counted this very kill: its ruling could not be written, the
/// case was, with a later signal, and the router died. The kill was not published, so it is ruled
/// once more. Never of a case that is not recovered: two sources may report one kill within one
/// millisecond.
fn counts(recovered: &HashSet<ContainerId>, case: &Case, signal: &Signal) -> bool {
    match (&signal.event, &case.last_kill) {
        (Event::OomKill(kill), Some((at, last))) => {
            kill.total.is_some()
                && kill.total == last.total
                && *at == signal.at
                && recovered.contains(&signal.target.container_id)
        }
        _ => false,
    }
}

/// Whether a report is about more processes of the kill that was ruled last, or has that kill's
/// count and more of it than the report that was first. Not of a recovered case that is as new as
/// the report: a crash may have lost the ruling of that kill.
fn is_step(recovered: &HashSet<ContainerId>, case: &Case, signal: &Signal) -> bool {
    if let Event::OomKill(kill) = &signal.event
        && is_one_life(case, signal)
        && adds(kill, case)
    {
        return !counts(recovered, case, signal);
    }
    if shows_the_group(case, signal) {
        return false;
    }
    let is_newer = case.last_kill.as_ref().is_some_and(|(at, _)| at.received_ms < signal.at.received_ms);
    let is_ruled = is_newer || !recovered.contains(&signal.target.container_id);
    case.exit.is_none() && is_ruled && case.is_step_of_last_kill(signal)
}

/// Adds what only the case knows: the counter's increase since the last ruling, whether the kill
/// is late, and what ended the container.
fn relate(signal: &mut Signal, seen_exit: Option<&Exited>, case: &Case) {
    if let Some(exited) = signal.exit_of_init_mut() {
        cause::complete(exited, seen_exit, case);
    }
    if let Event::OomKill(kill) = &mut signal.event {
        if let (Some(total), Some(before)) = (kill.total, case.kills_total())
            && total > before
        {
            kill.added = Some(total - before);
        }
        kill.late = case.exit.is_some();
    }
}

/// Changes another report of the last kill: that kill is not learnt late, and a report with the
/// same count adds none.
fn repeat(signal: &mut Signal, case: &Case) {
    let Event::OomKill(kill) = &mut signal.event else { return };
    kill.late = false;
    if kill.total == case.kills_total() {
        kill.added = Some(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::mode::Mode;
    use coroner_core::ruling::Action;
    use coroner_core::signal::Victim;
    use coroner_policy::Settings;
    use coroner_sources::envelope::Origin;
    use serde_json::json;

    /// The kill that raises the counter of container `c1` to 3, as the report of this moment.
    fn kill(received_ms: u64) -> WorkerTask {
        report(received_ms, 3, None)
    }

    /// A report of the counter, and of the counter of groups.
    fn report(received_ms: u64, total: u64, groups: Option<u64>) -> WorkerTask {
        let kill = json!({
            "added": 1, "total": total, "groups": groups, "group": groups.map(|groups| groups > 0),
            "evidence": "counter", "level": "container", "late": false,
        });
        let signal = json!({
            "id": format!("n::s:c1:{received_ms}"),
            "at": { "received-ms": received_ms },
            "target": { "node": "n", "container-id": "c1" },
            "event": { "oom-kill": kill },
            "attributes": [],
        });
        let known = Mode::Sole.knowable();
        let origin = Origin {
            source: "s".to_owned(),
            mode: Mode::Sole,
            known: known.clone(),
            guest: None,
            shim: false,
        };
        let envelope = Envelope {
            signal: serde_json::from_value(signal).unwrap(),
            origin: Arc::new(origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::none(),
        };
        WorkerTask::Rule(Box::new(NamedSignal { envelope, known, memory_limit: None, seen_exit: None }))
    }

    /// The ruled signal; `None` where it is skipped.
    fn ruled(worker: &mut Worker, task: WorkerTask) -> Option<RuledSignal> {
        match worker.step(task).unwrap() {
            WorkerOutput::Ruled(ruled) => Some(*ruled),
            WorkerOutput::Skipped { .. } => None,
        }
    }

    #[test]
    fn one_kill_is_one_event_in_however_many_steps_its_counter_rises() {
        let host = Arc::new(Host::new(Settings::default()).unwrap());
        let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
        let mut ruled = |ms, total, groups| ruled(&mut worker, report(ms, total, groups)).unwrap();
        let first = ruled(10, 1, Some(0));
        assert_eq!(first.record.actions, [Action::TaskOom]);
        for (ms, total) in [(12, 30), (14, 399), (16, 400)] {
            let step = ruled(ms, total, Some(1));
            assert_eq!(step.record.actions, [], "{total}");
            assert_eq!(step.record.signal.attributes, [(SAME_KILL.to_owned(), "true".to_owned())]);
            assert_eq!(step.case.kills, Some(total));
        }
        let second = ruled(20, 402, Some(2));
        assert_eq!((second.record.actions, second.case.kills), (vec![Action::TaskOom], Some(402)));
    }

    #[test]
    fn victim_of_a_kill_is_added_whichever_source_was_first() {
        let host = Arc::new(Host::new(Settings::default()).unwrap());
        let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
        let mut counted = kill(7);
        let WorkerTask::Rule(named) = &mut counted else { panic!("it is a signal") };
        let Event::OomKill(it) = &mut named.envelope.signal.event else { panic!("it is a kill") };
        it.level = Level::Unknown;
        let mut named = kill(9);
        let WorkerTask::Rule(it) = &mut named else { panic!("it is a signal") };
        let Event::OomKill(it) = &mut it.envelope.signal.event else { panic!("it is a kill") };
        it.victim = Some(Victim { pid: 7, comm: "java".to_owned(), is_init: Some(false) });
        assert_eq!(ruled(&mut worker, counted).unwrap().record.actions, [Action::TaskOom]);
        let step = ruled(&mut worker, named).unwrap();
        assert_eq!(step.record.actions, [], "one kill is ruled once");
        assert_eq!(step.record.signal.attributes, [(SAME_KILL.to_owned(), "true".to_owned())]);
        let Event::OomKill(repeated) = &step.record.signal.event else { panic!("it is a kill") };
        assert_eq!((repeated.added, repeated.late), (Some(0), false));
        let (at, last) = step.case.last_kill.as_ref().unwrap();
        assert_eq!((at.received_ms, last.level, step.case.kills), (7, Level::Container, Some(1)));
        assert_eq!(last.victim.as_ref().unwrap().comm, "java");
        assert!(ruled(&mut worker, kill(10)).is_none(), "it adds nothing");
    }

    #[test]
    fn agents_report_after_the_exit_of_a_wrapped_container_is_the_same_kill() {
        let check = |is_wrapped: bool, ms: u64, total: u64, is_published: bool| {
            let host = Arc::new(Host::new(Settings::default()).unwrap());
            let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
            let of = |mut task: WorkerTask| {
                let WorkerTask::Rule(named) = &mut task else { panic!("it is a signal") };
                if is_wrapped {
                    named.envelope.attributes = vec![(BUNDLE.to_owned(), "/run/bundle".to_owned())];
                }
                task
            };
            assert!(ruled(&mut worker, of(kill(7))).is_some());
            let mut exit = of(kill(8));
            let WorkerTask::Rule(named) = &mut exit else { panic!("it is a signal") };
            named.envelope.signal.event = Event::Exited(Exited { is_init: Some(true), ..Exited::unknown() });
            assert!(ruled(&mut worker, exit).is_some());
            let late = ruled(&mut worker, of(report(ms, total, None)));
            let published = late.is_some_and(|it| it.record.actions == [Action::TaskOom]);
            assert_eq!(published, is_published, "wrapped: {is_wrapped}, {ms} ms, total {total}");
        };
        check(true, 9, 3, false);
        check(true, 9, 2, false);
        check(true, 9, 4, true);
        // It may have been restarted under its id.
        check(false, 9, 3, true);
        check(true, 60_000, 3, true);
    }

    #[test]
    fn kill_of_a_group_within_the_container_is_published_though_a_child_was_first() {
        let host = Arc::new(Host::new(Settings::default()).unwrap());
        let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
        let within = |ms, total, groups| {
            let mut task = report(ms, total, Some(groups));
            let WorkerTask::Rule(named) = &mut task else { panic!("it is a signal") };
            let Event::OomKill(kill) = &mut named.envelope.signal.event else { panic!("it is a kill") };
            kill.level = Level::Child;
            kill.victim = Some(Victim { pid: 7, comm: "job".to_owned(), is_init: Some(false) });
            task
        };
        assert_eq!(ruled(&mut worker, within(10, 1, 0)).unwrap().record.actions, []);
        let whole = ruled(&mut worker, within(12, 3, 1)).unwrap();
        assert_eq!(whole.record.actions, [Action::TaskOom]);
        let step = ruled(&mut worker, within(14, 4, 1)).unwrap();
        assert_eq!(step.record.actions, [], "it is published once");
    }

    #[test]
    fn kill_is_ruled_again_after_a_crash_lost_its_ruling() {
        let host = Arc::new(Host::new(Settings::default()).unwrap());
        let worker = |cases| Worker::new(Arc::clone(&host), ActiveChain::fixed(Vec::new()), cases);
        // The same of a group: its own report is not a step of it.
        let mut grouped = worker(Vec::new());
        let before = ruled(&mut grouped, report(7, 3, Some(1))).unwrap();
        let id = before.record.signal.target.container_id.clone();
        let mut recovered = worker(vec![(id, "s".to_owned(), before.case.clone())]);
        let again = ruled(&mut recovered, report(7, 3, Some(1))).expect("its ruling was not written");
        assert_eq!(again.record.actions, [Action::TaskOom]);

        let mut first = worker(Vec::new());
        let before = ruled(&mut first, kill(7)).unwrap();
        assert!(ruled(&mut first, kill(8)).is_none(), "another source reports the same kill");
        assert!(ruled(&mut first, kill(7)).is_none(), "another does so within the same millisecond");
        let id = before.record.signal.target.container_id.clone();
        let mut second = worker(vec![(id, "s".to_owned(), before.case.clone())]);
        let again = ruled(&mut second, kill(7)).expect("its ruling was not written");
        assert_eq!(again.record.actions, before.record.actions);
        assert_eq!(again.case.kills, before.case.kills, "it is counted once");
        assert!(ruled(&mut second, kill(7)).is_none());
        assert!(ruled(&mut second, kill(8)).is_none());
    }
}
