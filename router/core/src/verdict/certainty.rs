//! How certain a verdict is, and what could not be read for it.

use super::records::DeathRecords;
use super::{Certainty, EndedBy, ExitFacts, Gap, KillFacts};
use crate::signal::{CauseKind, KILLS_UNKNOWN, KillEvidence, Level, Witness};

/// What shows a cause that follows from other facts.
const DERIVED: [&str; 2] = ["kill-request", "victim"];

pub(super) fn certainty(
    ended_by: EndedBy,
    exit: Option<&ExitFacts>,
    kill: Option<&KillFacts>,
    is_oom: bool,
) -> Certainty {
    let cause = exit.and_then(|it| it.cause.as_ref()).filter(|it| it.kind != CauseKind::Unknown);
    let is_derived =
        cause.is_some_and(|it| it.sources.iter().all(|source| DERIVED.contains(&source.as_str())));
    let is_requested = exit.is_some_and(|it| it.requested.is_some());
    match ended_by {
        EndedBy::OomKill => {
            let seen = |it: &Witness| !matches!(it, Witness::Announced | Witness::Inferred);
            let is_seen = kill.is_some_and(|it| it.witnesses.iter().any(seen));
            if is_seen || (cause.is_some() && !is_derived) { Certainty::Seen } else { Certainty::Derived }
        }
        EndedBy::Code => Certainty::Seen,
        EndedBy::Signal | EndedBy::CodeOrSignal => match cause {
            Some(_) if is_derived => Certainty::Derived,
            Some(_) => Certainty::Seen,
            // A policy concluded the kill from what it had.
            None if is_requested || is_oom && kill.is_none() => Certainty::Derived,
            None => Certainty::Open,
        },
        EndedBy::GuestLost | EndedBy::Nothing => Certainty::Derived,
    }
}

impl DeathRecords<'_> {
    pub(super) fn gaps(&self, exit: Option<&ExitFacts>, kill: Option<&KillFacts>) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let cause = exit.and_then(|it| it.cause.as_ref());
        let is_known = cause.is_some_and(|it| it.kind != CauseKind::Unknown);
        if let Some((signal, _)) = self.exit
            && self.by_sigkill()
            && !is_known
            && let Some((_, because)) = signal.attributes.iter().find(|(key, _)| key == KILLS_UNKNOWN)
        {
            gaps.push(Gap::KillCount(because.clone()));
        }
        if let Some(exit) = exit {
            gaps.extend(exit.status.is_none().then_some(Gap::Status));
            let is_by_kill = kill.is_some_and(|it| it.hit_init == Some(true));
            let has_cause = is_known || is_by_kill || exit.by_signal == Some(false);
            gaps.extend((!has_cause).then_some(Gap::Cause));
        }
        if let Some(kill) = kill {
            gaps.extend(kill.victim.is_none().then_some(Gap::Victim));
            gaps.extend(kill.hit_init.is_none().then_some(Gap::VictimRole));
            gaps.extend((kill.limit.level == Level::Unknown).then_some(Gap::Limit));
            match &self.evidence {
                Some(evidence) => of_evidence(evidence, kill, &mut gaps),
                None => gaps.push(Gap::Evidence),
            }
        }
        gaps
    }
}

fn of_evidence(evidence: &KillEvidence, kill: &KillFacts, gaps: &mut Vec<Gap>) {
    match &evidence.report {
        Some(report) => gaps.extend(report.incomplete.then_some(Gap::PartsOfKernelReport)),
        None => gaps.push(Gap::KernelReport),
    }
    let has_size = kill.victim.as_ref().is_some_and(|it| it.memory.is_some());
    gaps.extend((!has_size).then_some(Gap::VictimSize));
    gaps.extend((!evidence.has_names()).then_some(Gap::ProcessNames));
    gaps.extend(evidence.samples.is_empty().then_some(Gap::Samples));
    gaps.extend((evidence.left_out > 0).then_some(Gap::LeftOut(evidence.left_out)));
}
