//! The record of one container: its slots, counters and run.

use std::sync::Arc;

use coroner_proto::agent::{Exited, signal};

use crate::encoded_signal::EncodedSignal;

/// A container's slot: its kills, its own exit, or an exec's exit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    Kill,
    Exit(Option<String>),
}

#[derive(Debug, Default)]
pub(super) struct ContainerRecord {
    pub(super) cgroup: Arc<str>,
    pub(super) init_pid: Option<u32>,
    pub(super) kills_before: Option<u64>,
    pub(super) kills_total: Option<u64>,
    /// The total that was last acknowledged: `added` counts from it.
    pub(super) kills_acked: u64,
    pub(super) limit_bytes: Option<u64>,
    /// One or two, and one for each of the latest execs.
    pub(super) slots: Vec<(Slot, EncodedSignal)>,
    /// The current run has ended; its slot has the exit.
    pub(super) exited: bool,
    pub(super) departed: bool,
}

impl ContainerRecord {
    pub(super) fn highest(&self) -> u64 {
        self.slots.iter().map(|(_, signal)| signal.seq()).max().unwrap_or(0)
    }

    pub(super) fn slot(&self, slot: &Slot) -> Option<&EncodedSignal> {
        self.slots.iter().find(|(it, _)| it == slot).map(|(_, signal)| signal)
    }

    pub(super) fn take(&mut self, slot: &Slot) -> Option<EncodedSignal> {
        let at = self.slots.iter().position(|(it, _)| it == slot)?;
        Some(self.slots.swap_remove(at).1)
    }

    /// The exit of the current run; none while it runs.
    pub(super) fn exit(&self) -> Option<Exited> {
        match self.slot(&Slot::Exit(None)).filter(|_| self.exited)?.decode().event? {
            signal::Event::Exited(exited) => Some(exited),
            _ => None,
        }
    }
}
