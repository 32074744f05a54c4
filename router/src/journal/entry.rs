//! What a journal's lines say.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::case::{Case, Known};
use crate::config::Mode;
use crate::ruling::TaskEvent;
use crate::signal::{ContainerId, Signal};

/// The version of the file format.
pub(super) const VERSION: u32 = 1;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry<'a> {
    /// The first of each file.
    Segment(Segment),
    /// A source was told that its signal is safe.
    Accepted(Accepted<'a>),
    /// What is to be done about it.
    Ruled(Ruled<'a>),
    /// Nothing more is to be done about it.
    Done {
        /// Which.
        n: u64,
    },
    /// A source's stream is dealt with up to here.
    Cursor(Cursor),
    /// A container is there.
    Lives(Lives),
    /// Its source does not know it any more.
    Gone {
        /// Which.
        container: ContainerId,
    },
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Segment {
    /// The version of the file format.
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id`: no container outlives a boot.
    pub boot: String,
}

/// A signal as it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Accepted<'a> {
    /// Counts the signals that this journal took.
    pub n: u64,
    /// The source's name.
    pub source: Cow<'a, str>,
    /// Its mode.
    pub mode: Mode,
    /// What the source can know.
    pub known: Cow<'a, [Known]>,
    /// Memory the container used, in bytes.
    pub usage_bytes: Option<u64>,
    /// The signal.
    pub signal: Cow<'a, Signal>,
}

/// A ruling, before it is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ruled<'a> {
    /// Of the accepted signal.
    pub n: u64,
    /// The signal's id.
    pub id: Cow<'a, str>,
    /// The source's name.
    pub source: Cow<'a, str>,
    /// Whom it is about.
    pub container: Cow<'a, ContainerId>,
    /// Its containerd namespace.
    pub namespace: Cow<'a, str>,
    /// When it was received, unix milliseconds.
    pub at_ms: u64,
    /// What is to be published, in order.
    pub events: Cow<'a, [TaskEvent]>,
    /// What is known of the container after it.
    pub case: Cow<'a, Case>,
}

/// How far a stream was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cursor {
    /// The source's name.
    pub source: String,
    /// Its agent's stream.
    pub stream: String,
    /// Everything up to here was accepted, or refused.
    pub seq: u64,
}

/// A container that its source knows to live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lives {
    /// The source's name.
    pub source: String,
    /// Its agent's stream.
    pub stream: String,
    /// Which.
    pub container: ContainerId,
    /// The kernel's counter of OOM kills as it was then.
    pub kills_total: Option<u64>,
    /// Of a wrapped shim's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim: Option<ShimLives>,
}

/// Where a wrapped shim's container is: it tells so once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShimLives {
    /// containerd's namespace.
    pub namespace: String,
    /// Its bundle's folder.
    pub bundle: String,
    /// Its pod's sandbox, where the bundle says it.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Its own memory cgroup, where it has one on this node.
    pub cgroup: Option<String>,
    /// Of its init.
    pub pid: Option<u32>,
}

/// A line with what the writer must know of it.
#[derive(Debug)]
pub(super) enum Item {
    Accepted { n: u64, line: Vec<u8> },
    Ruled { n: u64, source: String, container: ContainerId, over: bool, oom: bool, line: Vec<u8> },
    Done { n: u64, line: Vec<u8> },
    Cursor { source: String, line: Vec<u8> },
    Lives { source: String, container: ContainerId, line: Vec<u8> },
    Gone { container: ContainerId, line: Vec<u8> },
}

impl Item {
    pub(super) fn line(&self) -> &[u8] {
        match self {
            Self::Accepted { line, .. }
            | Self::Ruled { line, .. }
            | Self::Done { line, .. }
            | Self::Cursor { line, .. }
            | Self::Lives { line, .. }
            | Self::Gone { line, .. } => line,
        }
    }
}
