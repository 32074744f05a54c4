//! The audit record: what was seen, ruled and done, one JSON line each. docs/audit-record.md is its page.

use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::config::{Mode, PolicyMode};
use crate::ruling::{Action, Opinion, Shadow};
use crate::signal::Signal;

/// The version of the line format.
pub const VERSION: u32 = 4;
/// The versions that can be read.
pub const READ: std::ops::RangeInclusive<u32> = 1..=VERSION;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`].
    pub v: u32,
    /// What it tells.
    #[serde(flatten)]
    pub record: Record,
}

/// What a line tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// A signal was ruled.
    Ruled(Box<Ruled>),
    /// A queued action has left.
    Delivered(Delivered),
    /// The policy chain was swapped, or something new was refused.
    Chain(Chain),
    /// The journal had something to go on with.
    Recovered(Recovery),
    /// What an earlier run of the router ruled is delivered now.
    Resumed(Box<Resumed>),
}

/// A signal and what was made of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ruled {
    /// The source's name.
    pub source: String,
    /// Its mode.
    pub mode: Mode,
    /// Of the policy chain.
    pub generation: u64,
    /// As the policies got it.
    pub signal: Signal,
    /// As the policies got it.
    pub case: Case,
    /// The native default.
    pub draft: Vec<Action>,
    /// What each policy said.
    pub rulings: Vec<Opinion>,
    /// What is to be done.
    pub actions: Vec<Action>,
    /// What the shadow policies made of it.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// Why the finished draft was replaced.
    pub illegal: Option<String>,
    /// Where each action goes.
    pub delivery: Vec<Planned>,
}

/// Where one action goes, or why nowhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Planned {
    /// The sink's name; `None` when no sink takes it.
    pub sink: Option<String>,
    /// `/tasks/oom`, `/tasks/exit` or a report's topic.
    pub topic: String,
    /// Whether it was queued.
    pub state: PlannedState,
    /// Why it was withheld.
    pub because: Option<String>,
}

/// Whether an action was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedState {
    /// It is in the sink's lane.
    Queued,
    /// It goes nowhere.
    Withheld,
}

/// The end of a queued action.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Delivered {
    /// The signal's id.
    pub id: String,
    /// The sink's name.
    pub sink: String,
    /// As in its plan.
    pub topic: String,
    /// How it ended.
    pub outcome: DeliveredOutcome,
    /// Tries it took.
    pub attempts: u32,
    /// Milliseconds from ruling to outcome.
    pub waited_ms: u64,
    /// The last error before it.
    pub error: Option<String>,
}

/// How a queued action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveredOutcome {
    /// The sink took it.
    Acked,
    /// The router stopped first.
    Unsent,
    /// It was sent once more: containerd had come back.
    Repeated,
    /// A sink other than containerd's gave it up; the error says why.
    Dropped,
}

/// What a router found in its journal at the start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recovery {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Accepted and not ruled.
    pub signals: usize,
    /// Ruled and not delivered.
    pub events: usize,
    /// Containers whose cases are known.
    pub containers: usize,
    /// Parts that were left out.
    pub damaged: usize,
}

/// A ruling that the journal had and that was not delivered: the line that told it may have been lost with the router.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resumed {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The signal's id.
    pub id: String,
    /// Whom it is about.
    pub container: String,
    /// The source's name.
    pub source: String,
    /// As it was accepted; `None`: its line of the journal was damaged.
    pub signal: Option<Signal>,
    /// What is published, in order.
    pub topics: Vec<String>,
}

/// A policy chain, and what was refused when it was built.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chain {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Signals are ruled by it from now on.
    pub generation: u64,
    /// In order.
    pub policies: Vec<ChainLink>,
    /// Left out, or replaced by the last good one.
    pub refused: Vec<Refused>,
}

/// A policy of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainLink {
    /// File name without `.wasm`.
    pub policy: String,
    /// As it describes itself.
    pub version: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// Whether its rulings count.
    pub mode: PolicyMode,
}

/// Something in the policy directory that is not in the chain as it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refused {
    /// The policy or file.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// The digest that runs instead: the last good one of this name.
    pub kept: Option<String>,
}

impl Record {
    /// The line, with its line feed.
    pub fn to_line(self) -> String {
        let line = Line { v: VERSION, record: self };
        let mut text = serde_json::to_string(&line).expect("records hold nothing JSON cannot say");
        text.push('\n');
        text
    }
}
