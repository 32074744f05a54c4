//! Rulings: what policies answer, the native default, and the legality check of a finished draft.

use serde::{Deserialize, Serialize};

use crate::signal::Forwarded;

/// A report for custom sinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Topic, which routes it to sinks.
    pub topic: String,
    /// A stable name of the reason.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
    /// Further fields.
    pub fields: Vec<(String, String)>,
}

/// One action of a ruling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Publish TaskOOM.
    TaskOom,
    /// Publish TaskExit; `None`: with the real status.
    TaskExit(Option<u32>),
    /// Send a report to custom sinks.
    Report(Report),
}

/// An event that is published to containerd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskEvent {
    /// `containerd.events.TaskOOM`
    Oom,
    /// `containerd.events.TaskExit`
    Exit {
        /// `None` is the container's init.
        exec_id: Option<String>,
        /// `None`: unknown; published as 0, as containerd does.
        pid: Option<u32>,
        /// `None`: unknown; published as 255, as containerd does.
        status: Option<u32>,
        /// Unix milliseconds.
        exited_at_ms: u64,
        /// The rest below a millisecond, in nanoseconds.
        #[serde(default)]
        exited_at_rest_ns: u32,
        /// A shim waits for it and is answered first.
        #[serde(default)]
        held: bool,
    },
    /// A shim's own event, unchanged.
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

    /// The published exit status; `None`: unknown, or not an exit.
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
    /// Actions, in order.
    pub actions: Vec<Action>,
    /// One sentence for a person.
    pub because: String,
    /// A stable name of the rule that decided.
    pub rule: Option<String>,
}

/// A policy's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ruling {
    /// The draft stays.
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
    /// It requested more memory than its limit.
    Memory,
    /// It exhausted its stack.
    Stack,
    /// It answered with an error.
    Refused,
    /// Its answer breaks the contract's limits.
    Answer,
    /// It could not be restarted after a fault.
    Start,
    /// Its call reached the timeout.
    Time,
    /// It flooded the log.
    Log,
    /// It was skipped: the chain's timeout for this signal had passed.
    ChainTime,
    /// It was skipped or stopped: the policies before it used the chain's fuel for this signal.
    ChainFuel,
    /// It was skipped: it is quarantined.
    Quarantined,
}

impl FaultKind {
    /// Every kind, in the order of [`FaultKind::index`].
    pub const ALL: [Self; 12] = [
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
        Self::ChainFuel,
        Self::Quarantined,
    ];

    /// Its index in [`FaultKind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name in the audit record and the metrics.
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
            Self::ChainFuel => "chain-fuel",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A policy's failure in one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// A message for a person.
    pub message: String,
}

/// One policy's part in a ruling, as in the audit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Opinion {
    /// File name without `.wasm`.
    pub policy: String,
    /// The version in its description.
    pub version: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// `None` after a fault.
    pub ruling: Option<Ruling>,
    /// wasm fuel the call burnt.
    pub fuel: u64,
    /// Why there is no ruling.
    pub fault: Option<Fault>,
    /// What the key `on_failure` of its file made of a fault; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<FailureHandled>,
}

/// What the key `on_failure` of a policy's file made of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureHandled {
    /// The first call had this fault, and the policy was called once more on a new instance.
    Retried(Fault),
    /// The fixed ruling made this of the draft.
    Fixed(Vec<Action>),
}

/// The result of a chain for one signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The native default, the first draft.
    pub draft: Vec<Action>,
    /// Each policy's opinion, in order.
    pub opinions: Vec<Opinion>,
    /// The actions to carry out.
    pub actions: Vec<Action>,
    /// Why the finished draft was replaced by the native default.
    pub illegal: Option<String>,
    /// The result with shadow policies; `None`: none was called.
    pub shadow: Option<Shadow>,
}

/// The result as if every shadow policy were enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shadow {
    /// Opinions of the shadow policies, and of enforced ones that were called again with another
    /// draft.
    pub rulings: Vec<Opinion>,
    /// The actions in that case.
    pub actions: Vec<Action>,
    /// Why that draft would have been replaced by the native default.
    pub illegal: Option<String>,
    /// Whether the actions differ from the enforced ones.
    pub differs: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_kind_has_unique_index_and_name() {
        for (at, kind) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
