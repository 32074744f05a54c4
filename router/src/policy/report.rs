//! What is told of policies to whoever asks: the JSON documents of docs/cli.md.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::audit::Refused;
use crate::config::PolicyMode;
use crate::ruling::{Action, FaultKind};

/// The chain as it runs, and what was refused.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listing {
    /// Of the chain.
    pub generation: u64,
    /// Why the directory is not read.
    pub problem: Option<String>,
    /// In file-name order.
    pub chain: Vec<PolicyStatus>,
    /// Left out, or replaced by the last good one.
    pub refused: Vec<Refused>,
}

/// The answer to a reload.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// What runs now.
    #[serde(flatten)]
    pub listing: Listing,
    /// Whether it is another chain than before.
    pub changed: bool,
    /// Milliseconds it took.
    pub took_ms: u64,
}

/// One policy of the chain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyStatus {
    /// File name without `.wasm`.
    pub policy: String,
    /// As it describes itself.
    pub version: String,
    /// `sha256:...`
    pub digest: String,
    /// Whether its rulings count.
    pub mode: PolicyMode,
    /// Whether it is called.
    pub state: State,
    /// End of the quarantine, unix milliseconds.
    pub until_ms: Option<u64>,
    /// Since this digest was loaded.
    pub calls: u64,
    /// Calls it did not pass.
    pub decided: u64,
    /// By kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Of a call.
    pub call_us: Option<CallTime>,
    /// Per source: what it needs and cannot be known there.
    pub unmet_needs: BTreeMap<String, Vec<String>>,
}

/// Whether a policy is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For every signal it wants.
    Running,
    /// Not before the quarantine's end.
    Quarantined,
    /// Its next call decides.
    Trial,
}

/// Microseconds: upper bounds of the histogram's buckets; `None`: beyond the last, 100 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CallTime {
    /// Half of the calls took at most this.
    pub p50: Option<u64>,
    /// 99 in 100 did.
    pub p99: Option<u64>,
}

/// All of one policy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// What `list` tells.
    #[serde(flatten)]
    pub status: PolicyStatus,
    /// Interfaces it imports.
    pub imports: Vec<String>,
    /// Kinds of signal it is called for.
    pub wants: Vec<String>,
    /// What it cannot work without.
    pub needs: Vec<String>,
    /// JSON Schema of its configuration.
    pub config_schema: Option<serde_json::Value>,
    /// Bytes of the component.
    pub size: u64,
    /// What holds for it.
    pub limits: BTreeMap<&'static str, serde_json::Value>,
    /// As it was handed over.
    pub config: serde_json::Value,
    /// The last 16.
    pub last_faults: Vec<LastFault>,
    /// In mode `shadow`.
    pub difference: Option<Difference>,
}

/// A fault as `inspect` tells it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LastFault {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Which kind.
    pub kind: FaultKind,
    /// What is known of it.
    pub message: String,
    /// Whose signal it was.
    pub container: String,
}

/// What a shadow policy would have changed since it was loaded.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// It was called for.
    pub signals: u64,
    /// It did not pass.
    pub decided: u64,
    /// It failed.
    pub faults: u64,
    /// Actions would have been others.
    pub differs: u64,
    /// By its rules; "" where it names none.
    pub rules: BTreeMap<String, RuleDifference>,
    /// The last 16 that differ.
    pub examples: Vec<Example>,
}

/// One rule's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleDifference {
    /// Calls it decided.
    pub decided: u64,
    /// Of these, actions would have been others.
    pub differs: u64,
}

/// A signal whose actions would have been others.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The signal's.
    pub id: String,
    /// Its container.
    pub container: String,
    /// `namespace/name`, where known.
    pub pod: Option<String>,
    /// What was carried out.
    pub enforced: Vec<Action>,
    /// What would have been.
    pub would: Vec<Action>,
    /// The shadow policy's reason.
    pub because: String,
}

/// The answer to a promotion.
#[derive(Clone, Debug, Serialize)]
pub struct Promoted {
    /// Whether its rulings count from now on.
    pub promoted: bool,
    /// Why not.
    pub because: Option<String>,
    /// What it would have changed.
    pub difference: Option<Difference>,
}

/// The answer to a release.
#[derive(Clone, Debug, Serialize)]
pub struct Released {
    /// Whether it was quarantined.
    pub released: bool,
    /// Which.
    pub policy: String,
    /// Of its component.
    pub digest: String,
}
