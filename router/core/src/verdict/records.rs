//! The records of one container, as they bear on its end.

use std::sync::Arc;

use super::paths::is_below;
use super::shares::MemoryShares;
use super::{EndedBy, ExitFacts, KillFacts, LimitFacts, VictimFacts, VictimSize};
use crate::audit::{Delivered, DeliveredOutcome, Resumed, Ruled};
use crate::case::Case;
use crate::ruling::{Action, TaskEvent};
use crate::signal::{
    CauseKind, Event, Evidence, ExitSignal, Exited, GuestLost, KernelReport, KillEvidence, Level, OomKilled,
    SAME_KILL, Signal,
};

const SIGKILL: u8 = 9;

/// The records of one container, added in the order in which they were written.
#[derive(Debug, Default)]
pub struct DeathRecords<'a> {
    /// The last kill by the kernel.
    pub(super) kill: Option<(&'a Signal, &'a OomKilled)>,
    /// Its other reports: the steps in which its counter rose, and those of other sources.
    steps: Vec<&'a OomKilled>,
    /// The ids of all of its reports.
    ids: Vec<&'a str>,
    /// The ids of kills before it.
    earlier: Vec<&'a str>,
    /// Its counter after the last step.
    total: Option<u64>,
    kills: usize,
    pub(super) evidence: Option<Arc<KillEvidence>>,
    /// Whether TaskOOM was ruled, and its ruling, unless the record of that is lost.
    pub(super) is_oom: bool,
    pub(super) oom: Option<&'a Ruled>,
    pub(super) exit: Option<(&'a Signal, &'a Exited)>,
    exit_ruled: Option<&'a Ruled>,
    pub(super) lost: Option<&'a GuestLost>,
    lost_ruled: Option<&'a Ruled>,
    delivered: Vec<&'a Delivered>,
}

impl<'a> DeathRecords<'a> {
    /// Adds a signal and its ruling.
    pub fn ruled(&mut self, ruled: &'a Ruled) {
        self.signal(&ruled.signal, Some(ruled), ruled.actions.contains(&Action::TaskOom));
    }

    /// Adds a ruling that was recovered from the journal.
    pub fn resumed(&mut self, resumed: &'a Resumed) {
        if let Some(signal) = &resumed.signal {
            self.signal(signal, None, resumed.topics.iter().any(|it| it == TaskEvent::Oom.topic()));
        }
    }

    /// Adds the end of a delivery.
    pub fn delivered(&mut self, delivered: &'a Delivered) {
        if matches!(delivered.outcome, DeliveredOutcome::Acked | DeliveredOutcome::Repeated) {
            self.delivered.push(delivered);
        }
    }

    fn signal(&mut self, signal: &'a Signal, ruled: Option<&'a Ruled>, is_oom: bool) {
        // The exit of an exec is not the container's.
        if signal.target.exec_id.is_some() {
            return;
        }
        if is_oom {
            self.is_oom = true;
            self.oom = ruled.or(self.oom);
        }
        match &signal.event {
            Event::OomKill(kill) if signal.attributes.iter().any(|(key, _)| key == SAME_KILL) => {
                self.ids.push(&signal.id);
                self.steps.push(kill);
                self.total = self.total.max(kill.total);
            }
            Event::OomKill(kill) if kill.added != Some(0) && kill.evidence != Evidence::Inferred => {
                self.killed(signal, kill);
            }
            Event::Exited(exited) if exited.is_init != Some(false) => {
                self.exit = Some((signal, exited));
                self.exit_ruled = ruled.or(self.exit_ruled);
            }
            Event::GuestLost(lost) => {
                self.lost = Some(lost);
                self.lost_ruled = ruled.or(self.lost_ruled);
            }
            Event::Evidence(evidence) => {
                let kill = evidence.kill.as_str();
                // A kill that two sources reported is ruled under the id of one of them.
                if self.ids.contains(&kill) || !self.earlier.contains(&kill) {
                    self.evidence = Some(Arc::clone(evidence));
                }
            }
            Event::Exited(_)
            | Event::OomKill(_)
            | Event::Pressure(_)
            | Event::KillRequest(_)
            | Event::Other(_)
            | Event::Forwarded(_) => {}
        }
    }

    fn killed(&mut self, signal: &'a Signal, kill: &'a OomKilled) {
        if !self.ids.contains(&signal.id.as_str()) {
            self.kills += 1;
            self.earlier.append(&mut self.ids);
            self.ids.push(&signal.id);
            (self.total, self.evidence) = (None, None);
            self.steps.clear();
        }
        self.total = self.total.max(kill.total);
        self.kill = Some((signal, kill));
    }

    pub(super) fn ended_by(&self, exit: Option<&ExitFacts>, kill: Option<&KillFacts>) -> EndedBy {
        let by_kill = kill
            .is_some_and(|kill| kill.hit_init == Some(true) || kill.group == Some(true) && self.by_sigkill());
        let has_cause =
            |exit: &ExitFacts| exit.cause.as_ref().is_some_and(|it| it.kind == CauseKind::KernelOom);
        match exit {
            None if self.lost.is_none() => EndedBy::Nothing,
            _ if by_kill => EndedBy::OomKill,
            None => EndedBy::GuestLost,
            Some(exit) if has_cause(exit) => EndedBy::OomKill,
            Some(exit) => match (exit.by_signal, exit.signal) {
                (Some(false), _) => EndedBy::Code,
                (Some(true), _) | (_, Some(_)) => EndedBy::Signal,
                (None, None) => EndedBy::CodeOrSignal,
            },
        }
    }

    pub(super) fn exit_facts(&self, signal: &Signal, exited: &Exited) -> ExitFacts {
        let (by_signal, seen) = match exited.exit_signal() {
            ExitSignal::None => (Some(false), None),
            ExitSignal::Some(seen) => (Some(true), Some(seen)),
            ExitSignal::Unknown => (exited.by_signal, None),
        };
        ExitFacts {
            at: signal.at,
            status: exited.status,
            by_signal,
            signal: seen,
            core: exited.core,
            cause: exited.cause.clone(),
            requested: self.requested(exited),
            after_kill_ns: self.kill.and_then(|(kill, _)| nanoseconds(kill, signal)),
            reconciled: exited.reconciled,
        }
    }

    /// The signal that fits the end and was sent through the runtime before.
    fn requested(&self, exited: &Exited) -> Option<u8> {
        let requests = self.case()?.requests.as_ref()?;
        let fits = |signal: &u8| exited.may_be_by(*signal) == Some(true);
        requests.iter().rev().map(|(_, it)| it.signal).find(fits)
    }

    pub(super) fn kill_facts(&self, signal: &Signal, kill: &OomKilled) -> KillFacts {
        let evidence = self.evidence.as_deref();
        let mut kill = kill.clone();
        self.steps.iter().for_each(|step| kill.complete(step));
        let kill = &kill;
        let limit = limit(kill, evidence);
        let group = self.group(kill);
        let before = kill.total.zip(kill.added).and_then(|(total, added)| total.checked_sub(added));
        let total = self.total.max(self.last_kill().and_then(|last| last.total));
        let shares = evidence.filter(|_| matches!(limit.level, Level::Ancestor | Level::Guest));
        KillFacts {
            id: signal.id.clone(),
            at: signal.at,
            recorded: self.kills,
            counted: self.case().and_then(|case| case.kills),
            victim: victim(kill, evidence),
            hit_init: self.hit_init(kill),
            group,
            processes: total.zip(before).and_then(|(total, before)| total.checked_sub(before)),
            witnesses: kill.witnesses(),
            late: kill.late,
            shares: shares.and_then(|it| MemoryShares::of(it, limit.cgroup.as_deref()?, limit.bytes)),
            limit,
        }
    }

    /// Whether the kill ended the container's first process, as far as that was seen.
    fn hit_init(&self, kill: &OomKilled) -> Option<bool> {
        let victim = kill.victim.as_ref().and_then(|it| it.is_init);
        let Some((_, exited)) = self.exit else { return victim };
        if victim == Some(true) {
            return Some(true);
        }
        match exited.cause.as_ref().map(|it| it.kind) {
            Some(CauseKind::KernelOom) => return Some(true),
            Some(CauseKind::Unknown) | None => {}
            Some(_) => return Some(false),
        }
        let is_alone = self.kills == 1 && kill.added == Some(1) && kill.group != Some(true);
        if is_alone && victim == Some(false) || exited.may_be_by(SIGKILL) == Some(false) {
            return Some(false);
        }
        None
    }

    /// Whether the whole container was killed as a group. The first report may have come before the
    /// kernel counted the group. A group within the container may be all of it or not.
    fn group(&self, kill: &OomKilled) -> Option<bool> {
        let counted = [Some(kill), self.last_kill()].into_iter().flatten();
        let counted = counted.filter(|it| it.level != Level::Child).filter_map(|it| it.group).max();
        let reported = self.evidence.as_ref().and_then(|it| it.report.as_ref()?.group);
        let reported = reported.filter(|_| kill.level != Level::Child);
        if counted == Some(true) { counted } else { reported.or(counted) }
    }

    fn last_kill(&self) -> Option<&'a OomKilled> {
        self.case()?.last_kill.as_ref().map(|(_, last)| last)
    }

    /// The case at the exit, unless the record of its ruling is lost.
    pub(super) fn case(&self) -> Option<&'a Case> {
        self.exit_ruled.map(|it| &it.case)
    }

    /// The ruling of the end.
    pub(super) fn end_ruled(&self) -> Option<&'a Ruled> {
        if self.exit.is_some() { self.exit_ruled } else { self.lost_ruled }
    }

    pub(super) fn by_sigkill(&self) -> bool {
        self.exit.is_some_and(|(_, exited)| exited.may_be_by(SIGKILL) == Some(true))
    }

    /// Whether the sink has this topic of the signal.
    pub(super) fn has(&self, id: &str, topic: &str, sink: &str) -> bool {
        self.delivered
            .iter()
            .any(|it| (it.id.as_str(), it.topic.as_str(), it.sink.as_str()) == (id, topic, sink))
    }
}

/// From one signal to another, on the clock of the machine that both are of: a guest has its own.
fn nanoseconds(from: &Signal, to: &Signal) -> Option<u64> {
    if (&from.target.node, &from.target.guest) != (&to.target.node, &to.target.guest) {
        return None;
    }
    to.at.boot_ns?.checked_sub(from.at.boot_ns?)
}

/// The limit that was hit; from the evidence, what the kill does not have.
fn limit(kill: &OomKilled, evidence: Option<&KillEvidence>) -> LimitFacts {
    let mut limit = LimitFacts::from(kill);
    let report = evidence.and_then(|it| it.report.as_ref());
    limit.cgroup = limit.cgroup.or_else(|| report?.limit_cgroup.clone());
    let own = kill.cgroup.as_deref().or_else(|| Some(evidence?.own_cgroup()?.path.as_str()));
    if let (Level::Unknown, Some(cgroup), Some(own)) = (limit.level, limit.cgroup.as_deref(), own) {
        limit.level = level(cgroup, own);
    }
    if limit.level == Level::Container {
        limit.cgroup = limit.cgroup.or_else(|| own.map(str::to_owned));
        limit.bytes = limit.bytes.or(limit.own_bytes);
    }
    limit.bytes = limit.bytes.or_else(|| {
        let usage = report?.usage.iter().find(|it| it.name == "memory");
        usage.and_then(|it| it.limit_bytes).or_else(|| limit_of(evidence?, limit.cgroup.as_deref()?))
    });
    limit
}

fn limit_of(evidence: &KillEvidence, cgroup: &str) -> Option<u64> {
    evidence.cgroups.iter().find(|it| it.path == cgroup)?.limit.bytes()
}

fn level(limited: &str, own: &str) -> Level {
    match limited {
        "/" => Level::Guest,
        _ if limited == own => Level::Container,
        _ if is_below(own, limited) => Level::Ancestor,
        _ if is_below(limited, own) => Level::Child,
        _ => Level::Unknown,
    }
}

/// The victim, with its memory where the report has the same process, or no other.
fn victim(kill: &OomKilled, evidence: Option<&KillEvidence>) -> Option<VictimFacts> {
    let victims = evidence.and_then(|it| it.report.as_ref()).map(|it: &KernelReport| it.victims.as_slice());
    let victims = victims.unwrap_or_default();
    let Some(victim) = &kill.victim else {
        let [only] = victims else { return None };
        let memory = Some(VictimSize::from(only));
        return Some(VictimFacts { pid: only.pid, comm: only.comm.clone(), is_init: None, memory });
    };
    let same = victims.iter().find(|it| it.pid == victim.pid).or(match victims {
        [only] => Some(only),
        _ => None,
    });
    Some(VictimFacts {
        pid: victim.pid,
        comm: Some(victim.comm.clone()).filter(|it| !it.is_empty()),
        is_init: victim.is_init,
        memory: same.map(VictimSize::from),
    })
}
