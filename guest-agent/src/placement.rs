//! How this process stands beside the containers, and so what it can know of exits: docs/guest.md, "Three ways to run".

use std::fmt;

use crate::connector::ConnectorError;

/// The three ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Processes whose parents ended become its children: it reads what they were before it reaps them.
    Reaper,
    /// It is in the initial namespaces, where the kernel tells how processes end that are nobody's child here.
    Sidecar,
    /// It sees that containers end, never how.
    Namespaced,
}

impl Placement {
    /// `reaps`: it is pid 1, or was made a reaper.
    pub(crate) fn of(reaps: bool, connector: Result<(), &ConnectorError>) -> Self {
        match connector {
            _ if reaps => Self::Reaper,
            Ok(()) => Self::Sidecar,
            Err(_) => Self::Namespaced,
        }
    }

    /// As the protocol names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reaper => "reaper",
            Self::Sidecar => "sidecar",
            Self::Namespaced => "namespaced",
        }
    }

    /// What it means, for a person.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Reaper => "every process that becomes its child has a status, others as a sidecar's",
            Self::Sidecar => {
                "inits of containers with a pid namespace of their own, and what Watch names, have a status"
            }
            Self::Namespaced => "exits are told without a status: run it in the init namespaces, or as pid 1",
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

/// Whether this process is the machine's init: orphans become its children without being asked for. That of a namespace of its own is
/// no ancestor of the containers beside it.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1
        && std::fs::read_link("/proc/self/ns/pid").is_ok_and(|space| space.as_os_str() == INITIAL)
}
