//! One raw fact about one container, checked at the border: after decoding, the types carry the
//! proof.
//!
//! The serde names are those of the audit record and of `sdk/wit`.

mod exited;
mod kill;
mod kill_evidence;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use exited::{Cause, CauseKind, ExitSignal, Exited, Sender};
pub use kill::{Evidence, Level, OomKilled, Victim, Witness};
pub use kill_evidence::{
    CgroupMemory, KernelReport, KillEvidence, LimitChange, MemoryLimit, MemorySample, ProcessMemory,
    ResourceUsage, VictimMemory,
};

/// Bytes of a container id. containerd's own limit is 76; without one a guest could fill the
/// router's maps, event ids and audit records with names a frame long.
const MAX_CONTAINER_ID: usize = 256;

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
        if is_container_id(&id) { Ok(Self(id)) } else { Err(SignalError::ContainerId { id: excerpt(&id) }) }
    }
}

/// The rule that both ends of the agent protocol keep. Without the alphabet an id could forge lines
/// of a log, or parts of a path.
fn is_container_id(id: &str) -> bool {
    (1..=MAX_CONTAINER_ID).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
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

/// Why a source's message is not a signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// Empty, over 256 bytes, or with invalid characters.
    #[error("container id `{id}` is not 1 to 256 characters of a-z A-Z 0-9 _ . -")]
    ContainerId {
        /// The first characters of it.
        id: String,
    },
    /// An invalid stream name.
    #[error("stream `{stream}` is not 1 to 64 characters of a-z A-Z 0-9 _ -")]
    Stream {
        /// The first characters of it.
        stream: String,
    },
    /// A list over its limit.
    #[error("{what} hold {count}, over {limit}")]
    TooMany {
        /// Name of the list.
        what: &'static str,
        /// Number of entries.
        count: usize,
        /// Largest number of entries.
        limit: usize,
    },
    /// A string over its limit.
    #[error("{what} of container `{container}` is {bytes} bytes long, over {limit}")]
    TooLong {
        /// The container.
        container: String,
        /// Name of the string.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A number that the kernel cannot have given.
    #[error("{what} of container `{container}` is {value}, which is out of range")]
    OutOfRange {
        /// The container.
        container: String,
        /// Name of the number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The first 64 characters of an untrusted string, safe for a log line.
pub fn excerpt(text: &str) -> String {
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

/// The owner of a container in Kubernetes.
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

/// The container of a signal.
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
    /// Its owner in Kubernetes.
    pub owner: Option<Owner>,
}

/// The resource that is short.
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
    /// The resource that is short.
    pub of: PressureOf,
    /// The `full` line, else `some`.
    pub full: bool,
    /// Share of the last 10 s in stall, in hundredths of a percent.
    pub avg10_centi: u32,
    /// Share of the last 60 s in stall, in hundredths of a percent.
    pub avg60_centi: u32,
    /// Cumulative stall, in microseconds.
    pub total_us: u64,
    /// Stall since the last such signal, in microseconds.
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
    /// The evidence.
    pub reason: String,
}

/// A kind that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Other {
    /// The source's name for it.
    pub kind: String,
    /// One JSON object.
    pub json: String,
}

/// An event that is forwarded without a ruling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forwarded {
    /// containerd's topic.
    pub topic: String,
    /// Type of its message.
    pub type_url: String,
    /// Its message, encoded.
    pub value: Vec<u8>,
    /// When it was published, unix nanoseconds.
    pub published_ns: Option<u64>,
}

/// The topic of a container's creation.
pub const CREATION: &str = "/tasks/create";

impl Forwarded {
    /// Whether it is a container's creation.
    pub fn is_creation(&self) -> bool {
        self.topic == CREATION
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The OOM killer's counter moved.
    OomKill(OomKilled),
    /// A process ended.
    Exited(Exited),
    /// Memory, cpu or io is short.
    Pressure(Pressure),
    /// A signal was sent through the runtime.
    KillRequest(KillRequest),
    /// The guest is gone.
    GuestLost(GuestLost),
    /// The evidence of an OOM kill, which was reported before.
    Evidence(Arc<KillEvidence>),
    /// Anything newer.
    Other(Other),
    /// A shim's event that is published unchanged: without a ruling and without an audit record.
    Forwarded(Box<Forwarded>),
}

/// The names of all kinds in the contracts.
pub const KINDS: [&str; 7] =
    ["oom-kill", "exited", "pressure", "kill-request", "guest-lost", "evidence", "other"];

impl Event {
    /// The kind's name in the contracts, one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OomKill(_) => "oom-kill",
            Self::Exited(_) => "exited",
            Self::Pressure(_) => "pressure",
            Self::KillRequest(_) => "kill-request",
            Self::GuestLost(_) => "guest-lost",
            Self::Evidence(_) => "evidence",
            Self::Other(_) => "other",
            Self::Forwarded(_) => "forwarded",
        }
    }
}

/// The attribute of an exit with the reason why the number of kills is unknown.
pub const KILLS_UNKNOWN: &str = "kills-unknown-because";
/// The attribute of an OOM kill that names its witness where that is not the container's counter.
pub const WITNESS: &str = "witness";
/// Attribute of a wrapped container, from its creation on: the folder of its bundle.
pub const BUNDLE: &str = "bundle";
/// Attribute of an OOM kill: `true` where it is another report of the kill before, which is not
/// ruled again.
pub const SAME_KILL: &str = "same-kill";
/// The witness: the kernel's log names a victim in the container's cgroup.
pub const KERNEL_LOG: &str = "kernel-log";
/// The witness: the kernel's tracepoints name a victim that was in the container's cgroup.
pub const OOM_TRACE: &str = "trace";
/// The witness: the counter of the pod's cgroup rose by more than its containers' counters.
pub const POD_COUNTER: &str = "pod-counter";

impl Signal {
    /// The exit of the container itself: of its init, and not of an exec. Most exits of which that
    /// is not known are of init.
    pub fn exit_of_init(&self) -> Option<&Exited> {
        match &self.event {
            Event::Exited(exited) if self.is_exit_of_init() => Some(exited),
            _ => None,
        }
    }

    /// The same, to be completed.
    pub fn exit_of_init_mut(&mut self) -> Option<&mut Exited> {
        let is_of_init = self.is_exit_of_init();
        match &mut self.event {
            Event::Exited(exited) if is_of_init => Some(exited),
            _ => None,
        }
    }

    fn is_exit_of_init(&self) -> bool {
        matches!(&self.event, Event::Exited(exited) if exited.is_init != Some(false))
            && self.target.exec_id.is_none()
    }
}

/// One raw fact about one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Signal {
    /// `node:guest:stream:container:seq`, with an empty guest for the node's own sources. Stable
    /// across retries and restarts.
    pub id: String,
    /// When it happened.
    pub at: Moment,
    /// The container.
    pub target: Target,
    /// What happened.
    pub event: Event,
    /// Further facts of the source, sorted by key.
    pub attributes: Vec<(String, String)>,
}
