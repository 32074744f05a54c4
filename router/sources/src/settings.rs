//! The settings of a source.

use std::collections::BTreeSet;
use std::time::Duration;

use coroner_core::mode::Mode;
use coroner_core::signal::ContainerId;
use coroner_transport::Address;

/// One source of the configuration.
#[derive(Clone, Debug)]
pub struct Source {
    /// The source's name, unique.
    pub name: String,
    /// The protocol of the peer.
    pub kind: SourceKind,
    /// What else publishes for its containers.
    pub mode: Mode,
    /// The guest's name, if the source is an agent in a guest.
    pub guest: Option<String>,
    /// The address of its agent.
    pub address: Address,
    /// The guest's virtual machine. A guest may report on its own containers only; `None`: the
    /// source is trusted like the node itself.
    pub machine: Option<Machine>,
}

/// The protocol at a source's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A coroner-agent.
    Agent,
    /// A stock kata-agent.
    Kata,
    /// The router itself listens: wrapped shims connect to it.
    Shim,
}

impl SourceKind {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Kata => "kata",
            Self::Shim => "shim",
        }
    }
}

/// A guest's virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The only containers it may report on; `None`: those that it reports first.
    pub containers: Option<BTreeSet<ContainerId>>,
    /// The pid of its monitor process.
    pub monitor_pid: Option<u32>,
    /// Timeout after which a guest without a link counts as lost.
    pub lost_after: Duration,
}
