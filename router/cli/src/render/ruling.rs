//! A ruling and its deliveries in text.

use std::time::Duration;

use coroner_core::audit::{Delivered, DeliveredOutcome, Planned, PlannedState, Recovery, Ruled};
use coroner_core::ruling::{Action, FailureHandled, Opinion, Ruling};
use coroner_core::signal::SAME_KILL;
use coroner_policy::{FixedRuling, OnFailure};

use super::signal::attribute;
use super::time::span;

/// The actions that count, in one line: by which policy and because of what.
pub(crate) fn decided(ruled: &Ruled) -> String {
    let done = actions(&ruled.actions);
    if let Some(why) = &ruled.illegal {
        return format!("native default: {done}, because the ruling is not legal: {why}");
    }
    // The last policy that decided: it replaced the draft of those before it.
    let last = ruled.rulings.iter().rev().find_map(|it| match (&it.ruling, &it.on_failure) {
        (Some(Ruling::Decide(decision)), _) => Some((&it.policy, decision.because.clone())),
        (None, Some(FailureHandled::Fixed(_))) => {
            let kind = it.fault.as_ref().map_or("unknown", |fault| fault.kind.name());
            Some((&it.policy, format!("it failed ({kind}) and its on_failure is a fixed ruling")))
        }
        (Some(Ruling::Pass) | None, _) => None,
    });
    match last {
        Some((policy, because)) => format!("{policy}: {done}, because {because}"),
        None if is_same_kill(ruled) => "not ruled again: one kill is one event".to_owned(),
        None => format!("native default: {done}"),
    }
}

fn is_same_kill(ruled: &Ruled) -> bool {
    attribute(&ruled.signal, SAME_KILL).is_some()
}

/// Each policy's part in a ruling, and whether it failed.
pub(crate) fn opinions(ruled: &Ruled) -> Vec<(String, bool)> {
    let mut lines: Vec<_> = ruled.rulings.iter().map(|it| (opinion(it), it.fault.is_some())).collect();
    if let Some(why) = &ruled.illegal {
        let done = actions(&ruled.actions);
        lines.push((format!("not legal, so the native default counts: {done}; {why}"), true));
    }
    if let Some(shadow) = ruled.shadow.as_ref().filter(|it| it.differs) {
        lines.push((format!("in mode shadow it would have been: {}", actions(&shadow.actions)), false));
    }
    lines
}

/// One policy's part in a ruling.
pub(crate) fn opinion(opinion: &Opinion) -> String {
    let by = format!("{} {}", opinion.policy, opinion.version);
    let by = match &opinion.on_failure {
        Some(FailureHandled::Retried(first)) => {
            format!("{by} failed ({}), and was called again by its on_failure", first.kind.name())
        }
        Some(FailureHandled::Fixed(_)) | None => by,
    };
    if let (Some(fault), Some(FailureHandled::Fixed(fixed))) = (&opinion.fault, &opinion.on_failure) {
        let (kind, fixed) = (fault.kind.name(), actions(fixed));
        return format!("{by} failed ({kind}): {}; fixed ruling of its on_failure: {fixed}", fault.message);
    }
    match (&opinion.fault, &opinion.ruling) {
        (Some(fault), _) => format!("{by} failed ({}): {}", fault.kind.name(), fault.message),
        (None, Some(Ruling::Decide(it))) => format!("{by}: {}, because {}", actions(&it.actions), it.because),
        (None, Some(Ruling::Pass) | None) => format!("{by}: pass"),
    }
}

/// The sink of each action, or why it is withheld.
pub(crate) fn planned(ruled: &Ruled) -> Vec<String> {
    let planned = ruled.delivery.iter().map(|Planned { sink, topic, state, because }| match (state, sink) {
        (PlannedState::Queued, Some(sink)) => format!("{topic} queued for {sink}"),
        _ => format!("{topic} withheld: {}", because.as_deref().unwrap_or_default()),
    });
    planned.collect()
}

/// The outcome of a delivery.
pub(crate) fn outcome(delivered: &Delivered) -> String {
    let Delivered { sink, topic, attempts, .. } = delivered;
    let tries = format!("{attempts} {}", if *attempts == 1 { "try" } else { "tries" });
    let waited = span(Duration::from_millis(delivered.waited_ms));
    let error = delivered.error.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default();
    match delivered.outcome {
        DeliveredOutcome::Acked => format!("{sink} took {topic}: {tries}, {waited}{error}"),
        DeliveredOutcome::Repeated => {
            format!("{sink} was sent {topic} once more, after it was restarted: {tries}")
        }
        DeliveredOutcome::Unsent => {
            format!("{topic} is not at {sink} yet, the router stopped first: {tries}, {waited}{error}")
        }
        DeliveredOutcome::Dropped => format!("{topic} was dropped for {sink}: {tries}, {waited}{error}"),
    }
}

/// Whether the sink has it.
pub(crate) fn is_delivered(delivered: &Delivered) -> bool {
    matches!(delivered.outcome, DeliveredOutcome::Acked | DeliveredOutcome::Repeated)
}

/// What a router recovered from its journal.
pub(crate) fn recovered(recovery: &Recovery) -> String {
    let Recovery { signals, events, damaged, .. } = recovery;
    let damaged = match damaged {
        0 => String::new(),
        damaged => format!("; {damaged} damaged lines skipped"),
    };
    format!("the router began again, with {signals} signals to rule and {events} events to deliver{damaged}")
}

/// Actions in order.
pub(crate) fn actions(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::TaskOom => "task-oom".to_owned(),
        Action::TaskExit(None) => "task-exit".to_owned(),
        Action::TaskExit(Some(status)) => format!("task-exit with status {status}"),
        Action::Report(report) => format!("report on {} ({})", report.topic, report.message),
    };
    let names: Vec<String> = actions.iter().map(one).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", then ") }
}

/// The key `on_failure` of a policy's file.
pub(crate) fn on_failure(on_failure: OnFailure) -> String {
    match on_failure {
        OnFailure::Draft => "draft".to_owned(),
        OnFailure::Hold => "hold".to_owned(),
        OnFailure::Fixed(FixedRuling { task_oom, status }) => {
            let oom = task_oom.map(|it| format!("task-oom {it}"));
            let texts: Vec<String> = oom.into_iter().chain(status.map(|it| format!("status {it}"))).collect();
            texts.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::ruling::{Decision, Fault, FaultKind, Report};

    use crate::render::record::{self, RecordLine};

    fn opinion(policy: &str, ruling: Option<Ruling>, fault: Option<Fault>) -> Opinion {
        let (policy, version) = (policy.to_owned(), "1".to_owned());
        Opinion { policy, version, digest: String::new(), ruling, fuel: 0, fault, on_failure: None }
    }

    fn decide(policy: &str, actions: Vec<Action>, because: &str) -> Opinion {
        let decision = Decision { actions, because: because.to_owned(), rule: None };
        opinion(policy, Some(Ruling::Decide(decision)), None)
    }

    fn ruled(rulings: Vec<Opinion>, actions: Vec<Action>) -> Ruled {
        let line = include_str!("../demo/recording.jsonl").lines().next().unwrap();
        let RecordLine::Ruled(ruled) = record::read(line).unwrap() else { panic!("{line}") };
        Ruled { rulings, actions, ..*ruled }
    }

    #[test]
    fn last_policy_that_decided_is_named() {
        let rulings = vec![
            decide("00-a", vec![Action::TaskOom], "x"),
            decide("50-b", Vec::new(), "y"),
            opinion("60-c", Some(Ruling::Pass), None),
        ];
        let mut record = ruled(rulings, Vec::new());
        assert_eq!(decided(&record), "50-b: nothing, because y");
        let lines: Vec<String> = opinions(&record).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, ["00-a 1: task-oom, because x", "50-b 1: nothing, because y", "60-c 1: pass"]);
        (record.illegal, record.actions) = (Some("0 task-exit".to_owned()), vec![Action::TaskExit(None)]);
        let expect = "native default: task-exit, because the ruling is not legal: 0 task-exit";
        assert_eq!(decided(&record), expect);
    }

    #[test]
    fn fixed_ruling_and_second_call_are_shown() {
        let fault = Fault { kind: FaultKind::Trap, message: "x".to_owned() };
        let mut fixed = opinion("00-a", None, Some(fault.clone()));
        fixed.on_failure = Some(FailureHandled::Fixed(vec![Action::TaskOom]));
        let mut retried = opinion("50-b", Some(Ruling::Pass), None);
        retried.on_failure = Some(FailureHandled::Retried(fault));
        let record = ruled(vec![fixed, retried], vec![Action::TaskOom]);
        let expect = "00-a: task-oom, because it failed (trap) and its on_failure is a fixed ruling";
        assert_eq!(decided(&record), expect);
        let lines: Vec<String> = opinions(&record).into_iter().map(|(line, _)| line).collect();
        let expect = [
            "00-a 1 failed (trap): x; fixed ruling of its on_failure: task-oom",
            "50-b 1 failed (trap), and was called again by its on_failure: pass",
        ];
        assert_eq!(lines, expect);
    }

    #[test]
    fn fault_leaves_the_native_default() {
        let fault = Fault { kind: FaultKind::Trap, message: "boom".to_owned() };
        let record = ruled(vec![opinion("70-d", None, Some(fault))], vec![Action::TaskOom]);
        assert_eq!(decided(&record), "native default: task-oom");
        assert_eq!(opinions(&record), [("70-d 1 failed (trap): boom".to_owned(), true)]);
    }

    #[test]
    fn recovery_counts_signals_events_and_damage() {
        let mut recovery = Recovery { at_ms: 0, signals: 3, events: 2, containers: 9, damaged: 0 };
        let text = "the router began again, with 3 signals to rule and 2 events to deliver";
        assert_eq!(recovered(&recovery), text);
        recovery.damaged = 1;
        assert_eq!(recovered(&recovery), format!("{text}; 1 damaged lines skipped"));
    }

    #[test]
    fn actions_are_named_in_order() {
        let (topic, message) = ("pager".to_owned(), "m".to_owned());
        let report = Action::Report(Report { topic, reason: String::new(), message, fields: Vec::new() });
        let text = actions(&[Action::TaskOom, Action::TaskExit(Some(3)), report]);
        assert_eq!(text, "task-oom, then task-exit with status 3, then report on pager (m)");
    }
}
