//! A source's mode, and the facts that a source can know and a ruling can change in it.

use serde::{Deserialize, Serialize};

/// What can be known about a container, and what a ruling on it can change, in its source's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// A kernel OOM kill counter is read.
    KillCount,
    /// The kernel's log of its victims is read.
    Victim,
    /// Exits carry status or signal.
    ExitStatus,
    /// What sent the signal that ended a process is seen.
    Cause,
    /// Kill requests made through the runtime are seen.
    KillRequests,
    /// Pressure stall information is read.
    Pressure,
    /// Memory limit and usage are read.
    Memory,
    /// Pod, namespace, container name or image are known.
    Owner,
    /// The router is the only publisher of TaskOOM.
    OomWritable,
    /// The router publishes TaskExit.
    ExitWritable,
    /// A status override is honoured.
    StatusWritable,
}

impl Known {
    /// Whether it is about what a ruling can change.
    pub(crate) fn is_writable(self) -> bool {
        matches!(self, Self::OomWritable | Self::ExitWritable | Self::StatusWritable)
    }

    /// The name in the contracts.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillCount => "kill-count",
            Self::Victim => "victim",
            Self::ExitStatus => "exit-status",
            Self::Cause => "cause",
            Self::KillRequests => "kill-requests",
            Self::Pressure => "pressure",
            Self::Memory => "memory",
            Self::Owner => "owner",
            Self::OomWritable => "oom-writable",
            Self::ExitWritable => "exit-writable",
            Self::StatusWritable => "status-writable",
        }
    }
}

/// The mode of a source: which component publishes for its containers. What the router publishes
/// follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A shim that does not know the router publishes TaskOOM and TaskExit too.
    Beside,
    /// A wrapped shim sends its events to the router instead of containerd; its Wait returns the
    /// shim's own status.
    Wrapped,
    /// As `wrapped`, and a proxy holds the shim's answers until they are ruled.
    Proxy,
    /// The router is the only publisher.
    Sole,
}

impl Mode {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Beside => "beside",
            Self::Wrapped => "wrapped",
            Self::Proxy => "proxy",
            Self::Sole => "sole",
        }
    }

    /// What a ruling can change in this mode.
    pub fn writable(self) -> &'static [Known] {
        match self {
            Self::Beside => &[],
            Self::Wrapped => &[Known::OomWritable, Known::ExitWritable],
            Self::Proxy | Self::Sole => &[Known::OomWritable, Known::ExitWritable, Known::StatusWritable],
        }
    }
}

impl Mode {
    /// The most that can be known about a container of an agent or a shim in this mode, and changed
    /// by a ruling.
    pub fn knowable(self) -> Vec<Known> {
        let read = [
            Known::KillCount,
            Known::Victim,
            Known::ExitStatus,
            Known::Cause,
            Known::Pressure,
            Known::Memory,
            Known::Owner,
        ];
        let read = match self {
            Self::Beside | Self::Sole => read.to_vec(),
            // The cause is of an agent beside the shim.
            Self::Wrapped => {
                vec![Known::KillCount, Known::ExitStatus, Known::Cause, Known::Memory, Known::Owner]
            }
            Self::Proxy => vec![
                Known::KillCount,
                Known::ExitStatus,
                Known::Cause,
                Known::KillRequests,
                Known::Memory,
                Known::Owner,
            ],
        };
        read.into_iter().chain(self.writable().iter().copied()).collect()
    }
}

/// Whether a policy's rulings are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// Its rulings are enforced.
    Enforce,
    /// It rules on live signals, and only the audit records that.
    Shadow,
    /// It is not loaded.
    Off,
}

impl PolicyMode {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}
