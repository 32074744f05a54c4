//! The end of a process, and what sent the signal that ended it.

use serde::{Deserialize, Serialize};

/// The end of a process of a container: its init, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exited {
    /// Process id in the source's pid namespace.
    pub pid: Option<u32>,
    /// Whether it is the container's init.
    pub is_init: Option<bool>,
    /// Exit code, or 128 + signal.
    pub status: Option<u32>,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// Whether a signal ended it; false: it exited with a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_signal: Option<bool>,
    /// Whether it dumped core.
    pub core: Option<bool>,
    /// What sent the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Time of the exit from its shim, unix nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ns: Option<u64>,
    /// Found at the start, after a time in which the container was not watched.
    pub reconciled: bool,
}

/// Whether a signal ended a process, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitSignal {
    /// It exited with a code.
    None,
    /// This signal ended it.
    Some(u8),
    /// Its status alone is known, and may be either.
    Unknown,
}

/// Highest number of a signal: `SIGRTMAX`.
const SIGNALS: u32 = 64;
/// The status that containerd publishes where it does not know one.
const UNKNOWN: u32 = 255;

/// The signal that this status may be of.
fn signal_of(status: u32) -> Option<u8> {
    let signal = status.checked_sub(128).filter(|it| (1..=SIGNALS).contains(it))?;
    u8::try_from(signal).ok()
}

impl Exited {
    /// An exit of which only that is known.
    pub fn unknown() -> Self {
        Self {
            pid: None,
            is_init: None,
            status: None,
            signal: None,
            by_signal: None,
            core: None,
            cause: None,
            at_ns: None,
            reconciled: false,
        }
    }

    /// Whether a signal ended it. A status of 129 to 192 alone proves neither: a program may exit
    /// with it too, for example a shell that passes on its child's status.
    pub fn exit_signal(&self) -> ExitSignal {
        match (self.by_signal, self.signal, self.status) {
            (Some(false), ..) => ExitSignal::None,
            (_, Some(signal), _) => ExitSignal::Some(signal),
            (Some(true), None, status) => {
                status.and_then(signal_of).map_or(ExitSignal::Unknown, ExitSignal::Some)
            }
            (None, None, None | Some(UNKNOWN)) => ExitSignal::Unknown,
            (None, None, Some(status)) => match signal_of(status) {
                Some(_) => ExitSignal::Unknown,
                None => ExitSignal::None,
            },
        }
    }

    /// Whether its status or signal is that of this signal. `None`: neither is known.
    pub fn may_be_by(&self, signal: u8) -> Option<bool> {
        match self.exit_signal() {
            ExitSignal::None => Some(false),
            ExitSignal::Some(seen) => Some(seen == signal),
            ExitSignal::Unknown => self.status.map(|status| status == 128 + u32::from(signal)),
        }
    }
}

/// What sent the signal that ended a process, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cause {
    /// Its kind.
    pub kind: CauseKind,
    /// The process that sent the signal, where it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Sender>,
    /// What shows it: `trace`, `counter`, `kernel-log`, `kill-request`, `victim`, `xattr`,
    /// `wait-status`.
    pub sources: Vec<String>,
}

/// The kinds of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CauseKind {
    /// Not proven.
    Unknown,
    /// The kernel's OOM killer.
    KernelOom,
    /// The container runtime.
    Runtime,
    /// A process of the container.
    ContainerProcess,
    /// A process outside of the container.
    NodeProcess,
    /// systemd-oomd.
    Oomd,
    /// systemd, by `OOMPolicy=stop`.
    OomPolicy,
    /// A write to `cgroup.kill`.
    CgroupKill,
    /// A forbidden system call.
    Seccomp,
    /// A resource limit.
    ResourceLimit,
    /// A fault of the process itself.
    Crash,
    /// The kernel, for another reason.
    Kernel,
}

impl CauseKind {
    /// The name in the contracts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::KernelOom => "kernel-oom",
            Self::Runtime => "runtime",
            Self::ContainerProcess => "container-process",
            Self::NodeProcess => "node-process",
            Self::Oomd => "oomd",
            Self::OomPolicy => "oom-policy",
            Self::CgroupKill => "cgroup-kill",
            Self::Seccomp => "seccomp",
            Self::ResourceLimit => "resource-limit",
            Self::Crash => "crash",
            Self::Kernel => "kernel",
        }
    }
}

/// A process that sent a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sender {
    /// Process id in the initial pid namespace of the source.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Its cgroup, as a path below the hierarchy's root; `None`: it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The exec of the container that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(by_signal: Option<bool>, signal: Option<u8>, status: Option<u32>, expect: ExitSignal) {
        let exited = Exited { by_signal, signal, status, ..Exited::unknown() };
        assert_eq!(exited.exit_signal(), expect, "{by_signal:?} {signal:?} {status:?}");
    }

    #[test]
    fn status_alone_proves_a_code_and_never_a_signal() {
        check(None, None, Some(0), ExitSignal::None);
        check(None, None, Some(128), ExitSignal::None);
        check(None, None, Some(129), ExitSignal::Unknown);
        check(None, None, Some(137), ExitSignal::Unknown);
        check(None, None, Some(192), ExitSignal::Unknown);
        check(None, None, Some(193), ExitSignal::None);
        check(None, None, Some(254), ExitSignal::None);
        check(None, None, Some(255), ExitSignal::Unknown);
        check(None, None, None, ExitSignal::Unknown);
    }

    #[test]
    fn wait_status_proves_signal_or_code() {
        check(Some(false), None, Some(137), ExitSignal::None);
        check(Some(true), Some(9), Some(137), ExitSignal::Some(9));
        check(None, Some(9), Some(137), ExitSignal::Some(9));
        check(Some(true), None, Some(137), ExitSignal::Some(9));
        check(Some(true), None, Some(1), ExitSignal::Unknown);
    }

    #[test]
    fn cause_kinds_have_their_contract_names() {
        for kind in [CauseKind::KernelOom, CauseKind::OomPolicy, CauseKind::CgroupKill, CauseKind::Kernel] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
