//! Placement: how the agent relates to the containers' processes, which decides what it can report
//! of exits. docs/operating/guest.md, "Three ways to run".

use std::fmt;

use crate::connector::ConnectorError;

/// How the agent relates to the containers' processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Orphaned processes become its children: it reads their cgroup before it reaps them.
    Reaper,
    /// It runs in the initial namespaces, where the kernel's process connector reports how
    /// processes end that are not its children.
    Sidecar,
    /// It detects that containers end, without a status.
    Namespaced,
}

impl Placement {
    /// `reaps`: the agent is pid 1 or a child subreaper.
    pub(crate) fn of(reaps: bool, connector: Result<(), &ConnectorError>) -> Self {
        match connector {
            _ if reaps => Self::Reaper,
            Ok(()) => Self::Sidecar,
            Err(_) => Self::Namespaced,
        }
    }

    /// Name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reaper => "reaper",
            Self::Sidecar => "sidecar",
            Self::Namespaced => "namespaced",
        }
    }

    /// Description for `check` and the log.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Reaper => {
                "every process that becomes its child has an exit status; others as for a sidecar"
            }
            Self::Sidecar => {
                "inits of containers with their own pid namespace, and processes named by Watch, have an exit status"
            }
            Self::Namespaced => "exits have no status: run the agent in the initial namespaces, or as pid 1",
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The initial pid namespace: PROC_PID_INIT_INO in include/linux/proc_ns.h.
const INITIAL: &str = "pid:[4026531836]";

/// Whether this process is the machine's init, so that orphans become its children. The init of an
/// inner pid namespace is not an ancestor of the containers beside it.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1
        && std::fs::read_link("/proc/self/ns/pid").is_ok_and(|space| space.as_os_str() == INITIAL)
}
