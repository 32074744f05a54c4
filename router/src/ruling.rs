//! What policies answer, the native default they start from, and the law a finished draft is held to.

use serde::{Deserialize, Serialize};

use crate::case::{Case, Known};
use crate::signal::{Event, Forwarded, Signal};

/// For custom sinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Routes it to sinks.
    pub topic: String,
    /// A word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// What else.
    pub fields: Vec<(String, String)>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Publish TaskOOM.
    TaskOom,
    /// Publish TaskExit; `None`: with the real status.
    TaskExit(Option<u32>),
    /// Hand a report to custom sinks.
    Report(Report),
}

/// What is published at containerd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskEvent {
    /// `containerd.events.TaskOOM`
    Oom,
    /// `containerd.events.TaskExit`
    Exit {
        /// `None` is the container's init.
        exec_id: Option<String>,
        /// 0 where it is not known, as containerd does.
        pid: Option<u32>,
        /// 255 where it is not known, as containerd does.
        status: Option<u32>,
        /// Unix milliseconds.
        exited_at_ms: u64,
        /// What is below a millisecond of it, in nanoseconds.
        #[serde(default)]
        exited_at_rest_ns: u32,
        /// Whoever waits for the process is told first.
        #[serde(default)]
        held: bool,
    },
    /// A shim's own, as it came.
    Forwarded(Box<Forwarded>),
}

impl TaskEvent {
    /// containerd's topic.
    pub fn topic(&self) -> &str {
        match self {
            Self::Oom => "/tasks/oom",
            Self::Exit { .. } => "/tasks/exit",
            Self::Forwarded(event) => &event.topic,
        }
    }

    /// The exit status that is published; `None`: it is not known, or there is none.
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::Oom | Self::Forwarded(_) => None,
            Self::Exit { status, .. } => *status,
        }
    }
}

impl Action {
    /// containerd's topic, or the report's.
    pub fn topic(&self) -> &str {
        match self {
            Self::TaskOom => "/tasks/oom",
            Self::TaskExit(_) => "/tasks/exit",
            Self::Report(report) => &report.topic,
        }
    }
}

/// A policy's decision: it replaces the draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Decision {
    /// What is to be done, in order.
    pub actions: Vec<Action>,
    /// One sentence for a person.
    pub because: String,
    /// A stable name of the rule that decided.
    pub rule: Option<String>,
}

/// What a policy answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ruling {
    /// The draft stands.
    Pass,
    /// The draft is replaced.
    Decide(Decision),
}

/// Why a policy gave no ruling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// It trapped: a panic, a division by zero, an access out of bounds.
    Trap,
    /// It burnt its fuel.
    Fuel,
    /// It asked for more memory than it may.
    Memory,
    /// It ran out of stack.
    Stack,
    /// It answered with an error.
    Refused,
    /// Its answer breaks the contract's limits.
    Answer,
    /// It could not be started anew after a fault.
    Start,
    /// Its call took too long.
    Time,
    /// It flooded the log.
    Log,
    /// It was not called: those before it had used up the time for this signal.
    ChainTime,
    /// It was not called: it is quarantined.
    Quarantined,
}

impl FaultKind {
    /// Every kind, in the order of [`FaultKind::index`].
    pub const ALL: [Self; 11] = [
        Self::Trap,
        Self::Fuel,
        Self::Memory,
        Self::Stack,
        Self::Refused,
        Self::Answer,
        Self::Start,
        Self::Time,
        Self::Log,
        Self::ChainTime,
        Self::Quarantined,
    ];

    /// Its place in [`FaultKind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// As the audit record and the metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Fuel => "fuel",
            Self::Memory => "memory",
            Self::Stack => "stack",
            Self::Refused => "refused",
            Self::Answer => "answer",
            Self::Start => "start",
            Self::Time => "time",
            Self::Log => "log",
            Self::ChainTime => "chain-time",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A policy's failure in one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fault {
    /// Which kind.
    pub kind: FaultKind,
    /// What is known of it.
    pub message: String,
}

/// One policy's part in a ruling, as the audit record tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Opinion {
    /// File name without `.wasm`.
    pub policy: String,
    /// As it describes itself.
    pub version: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// `None` after a fault.
    pub ruling: Option<Ruling>,
    /// wasm fuel the call burnt.
    pub fuel: u64,
    /// Why there is no ruling.
    pub fault: Option<Fault>,
}

/// What a chain made of one signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The native default the chain started from.
    pub draft: Vec<Action>,
    /// What each policy said, in order.
    pub opinions: Vec<Opinion>,
    /// What is to be done.
    pub actions: Vec<Action>,
    /// Why the finished draft was replaced by the native default.
    pub illegal: Option<String>,
    /// What would have been; `None`: no shadow policy was asked.
    pub shadow: Option<Shadow>,
}

/// What would have been, had every shadow policy been enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shadow {
    /// Of the shadow policies, and of enforced ones that were asked once more, about another draft.
    pub rulings: Vec<Opinion>,
    /// What would have been done.
    pub actions: Vec<Action>,
    /// Why that would have been replaced by the native default.
    pub illegal: Option<String>,
    /// Whether it is something else than what was done.
    pub differs: bool,
}

/// The native Kubernetes semantics: the first draft of every chain, and what stands when all else fails.
pub fn default_ruling(signal: &Signal, case: &Case) -> Decision {
    use crate::signal::Evidence;
    let (actions, because, rule) = match &signal.event {
        Event::OomKill(kill) => match (kill.added, kill.evidence) {
            (Some(0), _) => (vec![], "memory ran out, nothing was killed".to_owned(), "oom-without-kill"),
            (Some(added), _) => (
                vec![Action::TaskOom],
                format!("the kernel's OOM kill counter rose by {added}"),
                "oom-kill-counter",
            ),
            (None, Evidence::Announced) => (
                vec![Action::TaskOom],
                "an OOM was announced, and nothing counts kills here".to_owned(),
                "oom-announced",
            ),
            (None, Evidence::Counter | Evidence::Inferred) => {
                (vec![], "no kill counter rose, and nobody announced an OOM".to_owned(), "oom-unproven")
            }
        },
        Event::Exited(_) | Event::GuestLost(_) => {
            if case.knows(Known::ExitWritable) {
                (vec![Action::TaskExit(None)], "the container ended: its real status".to_owned(), "exit")
            } else {
                (vec![], "the shim tells this exit itself".to_owned(), "exit-not-ours")
            }
        }
        Event::Pressure(_) | Event::KillRequest(_) | Event::Other(_) | Event::Forwarded(_) => {
            (vec![], "nothing is published for this kind".to_owned(), "no-action")
        }
    };
    Decision { actions, because, rule: Some(rule.to_owned()) }
}

/// Reports a signal may lead to. A policy that answers thousands would fill every sink's queue with one signal.
pub const MAX_REPORTS: usize = 16;
/// Bytes of one report, all its texts together. Reports are copied to every sink that takes their topic.
pub const MAX_REPORT: usize = 4096;
/// Bytes of a report's topic: it is a metric label and a route key.
pub const MAX_TOPIC: usize = 128;
/// Bytes of `because`: it is written to the audit record of every signal.
pub const MAX_BECAUSE: usize = 1024;
/// Bytes of `rule`: it becomes a metric label.
pub const MAX_RULE: usize = 64;

/// Why an answer breaks the contract's limits, whatever the signal.
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

/// Why a finished draft may not be carried out for this signal.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_its_place_and_its_name() {
        for (at, kind) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
