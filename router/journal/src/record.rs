//! The records of the journal.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::mode::Mode;
use coroner_core::ruling::TaskEvent;
use coroner_core::signal::{ContainerId, Signal};

/// The version of the file format.
pub(super) const VERSION: u32 = 1;

/// One record: one line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "records are written and read one at a time, never kept")]
pub enum JournalRecord<'a> {
    /// The header: the first record of each segment.
    Segment(SegmentHeader),
    /// A signal that was acknowledged to its source.
    Accepted(AcceptedSignal<'a>),
    /// A ruling and what it publishes.
    Ruled(RulingRecord<'a>),
    /// The signal needs nothing more.
    Done {
        /// Number of the accepted signal.
        n: u64,
    },
    /// A source's stream was processed up to here.
    Cursor(Cursor),
    /// A container is running.
    #[serde(rename = "lives")]
    Running(RunningContainer),
    /// The source does not know the container any more.
    Gone {
        /// Id of the container.
        container: ContainerId,
    },
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SegmentHeader {
    /// The version of the file format.
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id`: containers do not outlive a boot.
    pub boot: String,
}

/// A signal as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AcceptedSignal<'a> {
    /// Number of the signal in this journal, from 1.
    pub n: u64,
    /// The source's name.
    pub source: Cow<'a, str>,
    /// The source's mode.
    pub mode: Mode,
    /// What the source can know.
    pub known: Cow<'a, [Known]>,
    /// Memory the container used, in bytes.
    pub usage_bytes: Option<u64>,
    /// The signal.
    pub signal: Cow<'a, Signal>,
}

/// A ruling, before its delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RulingRecord<'a> {
    /// Number of the accepted signal.
    pub n: u64,
    /// The signal's id.
    pub id: Cow<'a, str>,
    /// The source's name.
    pub source: Cow<'a, str>,
    /// Id of the container.
    pub container: Cow<'a, ContainerId>,
    /// Its containerd namespace.
    pub namespace: Cow<'a, str>,
    /// When the signal was received, unix milliseconds.
    pub at_ms: u64,
    /// Events to publish, in order.
    pub events: Cow<'a, [TaskEvent]>,
    /// The container's case after the ruling.
    pub case: Cow<'a, Case>,
}

/// How far a stream was processed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cursor {
    /// The source's name.
    pub source: String,
    /// The agent's stream.
    pub stream: String,
    /// Every signal up to this sequence number was accepted or refused.
    pub seq: u64,
}

/// A container that its source reports as running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunningContainer {
    /// The source's name.
    pub source: String,
    /// The agent's stream.
    pub stream: String,
    /// Id of the container.
    pub container: ContainerId,
    /// The kernel's OOM kill counter at that time.
    pub kills_total: Option<u64>,
    /// Set for a container of a wrapped shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim: Option<ShimContainer>,
}

/// Where a wrapped shim's container is; the shim reports it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShimContainer {
    /// containerd's namespace.
    pub namespace: String,
    /// The bundle's folder.
    pub bundle: String,
    /// The pod's sandbox, where the bundle names it.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The container's own memory cgroup, where it has one on this node.
    pub cgroup: Option<String>,
    /// Process id of its init.
    pub pid: Option<u32>,
}

/// A record as its line, with the fields that the live set needs.
#[derive(Debug)]
pub(super) enum PendingRecord {
    Accepted { n: u64, line: Vec<u8> },
    Ruled { n: u64, source: String, container: ContainerId, over: bool, oom: bool, line: Vec<u8> },
    Done { n: u64, line: Vec<u8> },
    Cursor { source: String, line: Vec<u8> },
    Running { source: String, container: ContainerId, line: Vec<u8> },
    Gone { container: ContainerId, line: Vec<u8> },
}

impl PendingRecord {
    pub(super) fn line(&self) -> &[u8] {
        match self {
            Self::Accepted { line, .. }
            | Self::Ruled { line, .. }
            | Self::Done { line, .. }
            | Self::Cursor { line, .. }
            | Self::Running { line, .. }
            | Self::Gone { line, .. } => line,
        }
    }
}
