//! One raw fact about one container, checked at the border: past this file its types carry the proof.
//!
//! The serde names are the audit record's; they are those of `sdk/wit/policy.wit`.

use std::fmt;

use coroner_proto::limits::valid_container_id;
use serde::{Deserialize, Serialize};

/// A container id: 1 to 256 characters of `a-z A-Z 0-9 _ . -`, not starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id as containerd knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = SignalError;

    fn try_from(id: String) -> Result<Self, SignalError> {
        if valid_container_id(&id) {
            Ok(Self(id))
        } else {
            Err(SignalError::ContainerId { id: excerpt(&id) })
        }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why something a source told is no signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// Empty, over 256 bytes, or with odd characters.
    #[error("container id `{id}` is not 1 to 256 characters of a-z A-Z 0-9 _ . -")]
    ContainerId {
        /// The first characters of it.
        id: String,
    },
    /// A stream's name that is none.
    #[error("stream `{stream}` is not 1 to 64 characters of a-z A-Z 0-9 _ -")]
    Stream {
        /// The first characters of it.
        stream: String,
    },
    /// A list past its limit.
    #[error("{what} hold {count}, over {limit}")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// How many are in it.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// A text past its limit.
    #[error("{what} of container `{container}` is {bytes} bytes long, over {limit}")]
    TooLong {
        /// Whose signal it is.
        container: String,
        /// Which text.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A number the kernel cannot have given.
    #[error("{what} of container `{container}` is {value}, which no kernel tells")]
    OutOfRange {
        /// Whose signal it is.
        container: String,
        /// Which number.
        what: &'static str,
        /// What was sent.
        value: u64,
    },
}

/// The first 64 characters of a stranger's text, fit for a log line.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// When something happened, on each clock that saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moment {
    /// The source's boot clock in nanoseconds: comparable within one source.
    pub boot_ns: Option<u64>,
    /// The source's wall clock, unix milliseconds.
    pub wall_ms: Option<u64>,
    /// The router's wall clock, unix milliseconds.
    pub received_ms: u64,
}

/// Who a container is to Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Owner {
    /// `io.kubernetes.pod.name`.
    pub pod: Option<String>,
    /// `io.kubernetes.pod.namespace`.
    pub namespace: Option<String>,
    /// `io.kubernetes.pod.uid`.
    pub pod_uid: Option<String>,
    /// `io.kubernetes.container.name`.
    pub container: Option<String>,
    /// Whether it is an init container.
    pub init_container: Option<bool>,
    /// The image as containerd names it.
    pub image: Option<String>,
}

/// Whom a signal is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    /// The node's name.
    pub node: String,
    /// The guest's name, when the source runs in one.
    pub guest: Option<String>,
    /// `k8s.io`, `moby`, ...
    pub containerd_namespace: Option<String>,
    /// The pod sandbox's container id.
    pub sandbox_id: Option<String>,
    /// The container's id.
    pub container_id: ContainerId,
    /// Set when the signal is about an exec in it.
    pub exec_id: Option<String>,
    /// Who it is to Kubernetes.
    pub owner: Option<Owner>,
}

/// How sure an OOM kill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// A kernel counter rose.
    Counter,
    /// Somebody said so, no counter.
    Announced,
    /// The router's own conclusion.
    Inferred,
}

/// Whose limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The container's own cgroup.
    Container,
    /// One below it.
    Child,
    /// One above it: the pod's, say.
    Ancestor,
    /// The whole machine.
    Guest,
    /// Not told.
    Unknown,
}

/// The process the kernel killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Victim {
    /// As the source's pid namespace counts.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Whether it was the container's init.
    pub is_init: Option<bool>,
}

/// The kernel's OOM killer in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OomKill {
    /// Kills since the last such signal; 0: memory ran out, nothing was killed.
    pub added: Option<u64>,
    /// The kernel's cumulative counter.
    pub total: Option<u64>,
    /// How sure it is.
    pub evidence: Evidence,
    /// `memory.oom.group` killed the cgroup as a whole.
    pub group: Option<bool>,
    /// Whose limit was hit.
    pub level: Level,
    /// The cgroup the kill was counted in.
    pub cgroup: Option<String>,
    /// Its limit in bytes.
    pub limit_bytes: Option<u64>,
    /// Who was killed.
    pub victim: Option<Victim>,
    /// Learnt after the exit was ruled.
    pub late: bool,
}

/// The end of a process of a container: its init, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exited {
    /// As the source's pid namespace counts.
    pub pid: Option<u32>,
    /// Whether it is the container's init.
    pub is_init: Option<bool>,
    /// Exit code, or 128 + signal.
    pub status: Option<u32>,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// Whether it dumped core.
    pub core: Option<bool>,
    /// When, as its shim says, unix nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ns: Option<u64>,
    /// Found at start, after a time in which nobody watched.
    pub reconciled: bool,
}

/// What is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PressureOf {
    /// `memory.pressure`
    Memory,
    /// `cpu.pressure`
    Cpu,
    /// `io.pressure`
    Io,
}

/// Pressure stall information of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pressure {
    /// What is short.
    pub of: PressureOf,
    /// The `full` line, else `some`.
    pub full: bool,
    /// Hundredths of a percent.
    pub avg10_centi: u32,
    /// Hundredths of a percent.
    pub avg60_centi: u32,
    /// Microseconds.
    pub total_us: u64,
    /// Microseconds since the last such signal.
    pub stalled_us: Option<u64>,
    /// `memory.events` `high`.
    pub high_events: Option<u64>,
}

/// A signal sent through the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KillRequest {
    /// 9, 15, ...
    pub signal: u8,
    /// To every process of the container.
    pub all: bool,
}

/// The link to a guest ended for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestLost {
    /// How it showed.
    pub reason: String,
}

/// A kind this version has no name for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Other {
    /// The source's name for it.
    pub kind: String,
    /// One JSON object.
    pub json: String,
}

/// An event that is not ours to judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forwarded {
    /// containerd's topic.
    pub topic: String,
    /// Of its message.
    pub type_url: String,
    /// Its message.
    pub value: Vec<u8>,
    /// When its publisher published it, unix nanoseconds.
    pub published_ns: Option<u64>,
}

/// The topic of a container's creation.
pub const CREATION: &str = "/tasks/create";

impl Forwarded {
    /// Whether a container begins with it.
    pub fn is_creation(&self) -> bool {
        self.topic == CREATION
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The OOM killer's counter moved.
    OomKill(OomKill),
    /// A process ended.
    Exited(Exited),
    /// Memory, cpu or io is short.
    Pressure(Pressure),
    /// A signal was sent through the runtime.
    KillRequest(KillRequest),
    /// The guest is gone.
    GuestLost(GuestLost),
    /// Anything newer.
    Other(Other),
    /// An event of a shim that is published as it came: no policy is asked, and no audit record tells of it.
    Forwarded(Box<Forwarded>),
}

/// Every kind of signal, as the contracts name it.
pub const KINDS: [&str; 6] = ["oom-kill", "exited", "pressure", "kill-request", "guest-lost", "other"];

impl Event {
    /// The kind's name in the contracts, one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OomKill(_) => "oom-kill",
            Self::Exited(_) => "exited",
            Self::Pressure(_) => "pressure",
            Self::KillRequest(_) => "kill-request",
            Self::GuestLost(_) => "guest-lost",
            Self::Other(_) => "other",
            Self::Forwarded(_) => "forwarded",
        }
    }
}

/// One raw fact about one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Signal {
    /// `node:guest:stream:container:seq`, the guest empty where the source is the node's, stable across retries and restarts.
    pub id: String,
    /// When.
    pub at: Moment,
    /// About whom.
    pub target: Target,
    /// What.
    pub event: Event,
    /// What else the source says, sorted by key.
    pub attributes: Vec<(String, String)>,
}
