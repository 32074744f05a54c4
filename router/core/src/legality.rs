//! Legality: the limits on one policy's answer, and the rules a finished draft must keep.

use crate::case::Case;
use crate::mode::Known;
use crate::ruling::{Action, Decision, Report};
use crate::signal::{Event, Signal};

/// Reports of one signal. Without it one answer of thousands would fill every sink's queue.
pub const MAX_REPORTS: usize = 16;
/// Bytes of one report, all its strings together. Reports are copied to every sink that takes their
/// topic.
pub const MAX_REPORT: usize = 4096;
/// Bytes of a report's topic: it is a metric label and a route key.
pub const MAX_TOPIC: usize = 128;
/// Bytes of `because`: it is in the audit record of every signal.
pub const MAX_BECAUSE: usize = 1024;
/// Bytes of `rule`: it becomes a metric label.
pub const MAX_RULE: usize = 64;

/// Why an answer breaks the contract's limits, for any signal.
pub fn within_limits(decision: &Decision) -> Result<(), String> {
    let reports = decision.actions.iter().filter(|a| matches!(a, Action::Report(_))).count();
    if reports > MAX_REPORTS {
        return Err(format!("{reports} reports, over {MAX_REPORTS}"));
    }
    if decision.actions.len() > MAX_REPORTS + 2 {
        return Err(format!("{} actions, over {}", decision.actions.len(), MAX_REPORTS + 2));
    }
    if decision.because.len() > MAX_BECAUSE {
        return Err(format!("because is {} bytes, over {MAX_BECAUSE}", decision.because.len()));
    }
    if let Some(rule) = decision.rule.as_ref().filter(|rule| rule.len() > MAX_RULE) {
        return Err(format!("rule is {} bytes, over {MAX_RULE}", rule.len()));
    }
    for action in &decision.actions {
        if let Action::Report(report) = action {
            report_within_limits(report)?;
        }
    }
    Ok(())
}

fn report_within_limits(report: &Report) -> Result<(), String> {
    if report.topic.is_empty() || report.topic.len() > MAX_TOPIC {
        return Err(format!("a report's topic is {} bytes, not 1 to {MAX_TOPIC}", report.topic.len()));
    }
    let fields: usize = report.fields.iter().map(|(key, value)| key.len() + value.len()).sum();
    let bytes = report.topic.len() + report.reason.len() + report.message.len() + fields;
    if bytes > MAX_REPORT {
        return Err(format!("a report of {bytes} bytes, over {MAX_REPORT}"));
    }
    Ok(())
}

/// Why a finished draft is illegal for this signal.
pub fn legal(signal: &Signal, case: &Case, actions: &[Action]) -> Result<(), String> {
    let ends = matches!(signal.event, Event::Exited(_) | Event::GuestLost(_));
    let due = usize::from(ends && case.knows(Known::ExitWritable));
    let exits: Vec<usize> = positions(actions, |action| matches!(action, Action::TaskExit(_)));
    let ooms: Vec<usize> = positions(actions, |action| matches!(action, Action::TaskOom));
    if exits.len() != due {
        return Err(match due {
            1 => format!("{} task-exit where exactly one is due", exits.len()),
            _ => "a task-exit where the router publishes none".to_owned(),
        });
    }
    if ooms.len() > 1 {
        return Err(format!("{} task-oom for one signal", ooms.len()));
    }
    if let (Some(oom), Some(exit)) = (ooms.first(), exits.first())
        && oom > exit
    {
        return Err("task-oom after task-exit".to_owned());
    }
    for action in actions {
        if let Action::TaskExit(Some(status)) = action {
            if !case.knows(Known::StatusWritable) {
                return Err(format!("status {status} where this mode cannot honour a status"));
            }
            if *status > 255 {
                return Err(format!("status {status} is over 255"));
            }
        }
    }
    Ok(())
}

fn positions(actions: &[Action], is: impl Fn(&Action) -> bool) -> Vec<usize> {
    actions.iter().enumerate().filter(|(_, action)| is(action)).map(|(at, _)| at).collect()
}
