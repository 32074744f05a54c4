//! The audit record: what was seen, ruled and delivered, one JSON line each. See
//! docs/reference/audit-record.md.
//! The field's name: audit log.

use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::mode::{Mode, PolicyMode};
use crate::ruling::{Action, Opinion, Shadow};
use crate::signal::Signal;

/// The version of the line format.
pub const VERSION: u32 = 5;
/// The versions that can be read.
pub const READ: std::ops::RangeInclusive<u32> = 1..=VERSION;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`].
    pub v: u32,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// The kinds of records.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// A signal was ruled.
    Ruled(Box<Ruled>),
    /// The delivery of a queued action ended.
    Delivered(Delivered),
    /// The policy chain was swapped, or a policy was refused.
    Chain(ChainRecord),
    /// The journal had state to recover.
    Recovered(Recovery),
    /// A ruling of an earlier run of the router is delivered now.
    Resumed(Box<Resumed>),
}

/// A signal and its ruling.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ruled {
    /// The source's name.
    pub source: String,
    /// The source's mode.
    pub mode: Mode,
    /// Generation of the policy chain.
    pub generation: u64,
    /// The signal as the policies received it.
    pub signal: Signal,
    /// The case as the policies received it.
    pub case: Case,
    /// The native default.
    pub draft: Vec<Action>,
    /// Each policy's opinion.
    pub rulings: Vec<Opinion>,
    /// The actions to carry out.
    pub actions: Vec<Action>,
    /// The result with the shadow policies.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// Why the finished draft was replaced.
    pub illegal: Option<String>,
    /// The planned delivery of each action.
    pub delivery: Vec<Planned>,
}

/// The planned delivery of one action.
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
    /// No sink receives it.
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
    /// The topic, as in its plan.
    pub topic: String,
    /// The outcome.
    pub outcome: DeliveredOutcome,
    /// Number of attempts.
    pub attempts: u32,
    /// Milliseconds from ruling to outcome.
    pub waited_ms: u64,
    /// The last error before it.
    pub error: Option<String>,
}

/// The outcome of a queued action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveredOutcome {
    /// The sink accepted it.
    Acked,
    /// The router stopped first.
    Unsent,
    /// It was repeated, because containerd restarted.
    Repeated,
    /// A sink other than containerd's dropped it; the error has the reason.
    Dropped,
}

/// What a router recovered from its journal at the start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recovery {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Signals accepted and not ruled.
    pub signals: usize,
    /// Rulings not delivered.
    pub events: usize,
    /// Containers with a known case.
    pub containers: usize,
    /// Damaged parts, which were skipped.
    pub damaged: usize,
}

/// A recovered ruling that was not delivered. Its `ruled` record may have been lost with the
/// router.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resumed {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The signal's id.
    pub id: String,
    /// Id of the container.
    pub container: String,
    /// The source's name.
    pub source: String,
    /// The accepted signal; `None`: its line of the journal was damaged.
    pub signal: Option<Signal>,
    /// Topics to publish, in order.
    pub topics: Vec<String>,
}

/// A policy chain, and what was refused when it was built.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainRecord {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The generation that rules from now on.
    pub generation: u64,
    /// Policies in order.
    pub policies: Vec<ChainLink>,
    /// Policies left out, or replaced by their last good version.
    pub refused: Vec<Refused>,
}

/// A policy of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainLink {
    /// File name without `.wasm`.
    pub policy: String,
    /// The version in its description.
    pub version: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// Whether its rulings are enforced.
    pub mode: PolicyMode,
}

/// A file of the policy directory that is not in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refused {
    /// The policy or file.
    pub subject: String,
    /// The reason.
    pub reason: String,
    /// The digest that runs instead: the last good one of this name.
    pub kept: Option<String>,
}

impl Record {
    /// The line, with its line feed.
    pub fn to_line(self) -> String {
        let line = Line { v: VERSION, record: self };
        let mut text = serde_json::to_string(&line).expect("records contain only what JSON can express");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_shows_the_version_that_is_stamped() {
        let page = include_str!("../../../docs/reference/audit-record.md");
        let stamped = VERSION.to_string();
        let cells: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `v`")?.split('|').nth(1))
            .map(|cell| cell.split(',').next().unwrap_or_default().trim())
            .collect();
        // `ruled`, `delivered`, `chain`, `recovered`, `resumed`.
        assert_eq!(cells, [stamped.as_str(); 5]);
        assert!(page.contains(&format!("the version of this page: {stamped}.")));
    }
}
