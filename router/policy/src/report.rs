//! Reports about policies: the JSON documents of docs/reference/cli.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::on_failure::OnFailure;
use coroner_core::audit::Refused;
use coroner_core::mode::PolicyMode;
use coroner_core::ruling::{Action, FaultKind};

/// The running chain, and what was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listing {
    /// Generation of the chain.
    pub generation: u64,
    /// Why the directory cannot be read.
    pub problem: Option<String>,
    /// Policies in file-name order.
    pub chain: Vec<PolicyStatus>,
    /// Policies left out, or replaced by their last good version.
    pub refused: Vec<Refused>,
}

/// The answer to a reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// The running chain.
    #[serde(flatten)]
    pub listing: Listing,
    /// Whether the chain changed.
    pub changed: bool,
    /// Duration in milliseconds.
    pub took_ms: u64,
}

/// One policy of the chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyStatus {
    /// File name without `.wasm`.
    pub policy: String,
    /// The version in its description.
    pub version: String,
    /// `sha256:...`
    pub digest: String,
    /// Whether its rulings are enforced.
    pub mode: PolicyMode,
    /// Whether it is called.
    pub state: PolicyState,
    /// End of the quarantine, unix milliseconds.
    pub until_ms: Option<u64>,
    /// Calls since this digest was loaded.
    pub calls: u64,
    /// Calls with a decision.
    pub decided: u64,
    /// Faults by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Time of a call.
    pub call_us: Option<CallTime>,
    /// Per source: needs of the policy that the source cannot fulfil.
    pub unmet_needs: BTreeMap<String, Vec<String>>,
}

/// Whether a policy is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyState {
    /// Called for every signal it wants.
    Running,
    /// Not called before the quarantine ends.
    Quarantined,
    /// Its next call decides.
    Trial,
}

/// Microseconds: upper bounds of the histogram's buckets; `None`: beyond the last, 100 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallTime {
    /// The median.
    pub p50: Option<u64>,
    /// The 99th percentile.
    pub p99: Option<u64>,
}

/// All about one policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// The entry of the list.
    #[serde(flatten)]
    pub status: PolicyStatus,
    /// Interfaces it imports.
    pub imports: Vec<String>,
    /// Kinds of signal it wants.
    pub wants: Vec<String>,
    /// Facts it needs.
    pub needs: Vec<String>,
    /// JSON Schema of its configuration.
    pub config_schema: Option<serde_json::Value>,
    /// Size of the component, in bytes.
    pub size: u64,
    /// Its limits.
    pub limits: BTreeMap<String, serde_json::Value>,
    /// What rules where it fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Its configuration.
    pub config: serde_json::Value,
    /// The last 16 faults.
    pub last_faults: Vec<LastFault>,
    /// The shadow report, in mode `shadow`.
    pub difference: Option<Difference>,
}

/// One fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LastFault {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Kind of the fault.
    pub kind: FaultKind,
    /// The fault's message.
    pub message: String,
    /// Container of the signal.
    pub container: String,
}

/// The shadow report: what a policy would have changed since it was loaded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Signals evaluated.
    pub signals: u64,
    /// Calls with a decision.
    pub decided: u64,
    /// Calls with a fault.
    pub faults: u64,
    /// Signals with actions that would differ.
    pub differs: u64,
    /// By rule; "" where the policy names none.
    pub rules: BTreeMap<String, RuleDifference>,
    /// The last 16 signals that would differ.
    pub examples: Vec<Example>,
}

/// The share of one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDifference {
    /// Calls with a decision.
    pub decided: u64,
    /// Decisions with actions that would differ.
    pub differs: u64,
}

/// A signal with actions that would differ.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Example {
    /// Id of the signal.
    pub id: String,
    /// Id of the container.
    pub container: String,
    /// `namespace/name`, where known.
    pub pod: Option<String>,
    /// Actions that were enforced.
    pub enforced: Vec<Action>,
    /// Actions with the shadow policy.
    pub would: Vec<Action>,
    /// The shadow policy's reason.
    pub because: String,
}

/// The answer to a promotion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Promoted {
    /// Whether its rulings are enforced now.
    pub promoted: bool,
    /// Why it was not promoted.
    pub because: Option<String>,
    /// The shadow report up to now.
    pub difference: Option<Difference>,
}

/// The answer to a release.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Released {
    /// Whether it was quarantined.
    pub released: bool,
    /// Name of the policy.
    pub policy: String,
    /// Digest of its component.
    pub digest: String,
}
