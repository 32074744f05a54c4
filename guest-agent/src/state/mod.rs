//! The state of every container, and the cursors of its readers. Pure: no file, no clock, no
//! socket.
//!
//! It is state, not a log: a container has one slot for kills and one for each exit. A change moves
//! its slot to the next sequence number, so a reader that is behind reads each slot once, in its
//! latest version. The field's name: ring buffer.

mod container;
mod dropped;
mod read;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use coroner_proto::agent::{Exited, OomKill, Pressure, Signal, signal};

use crate::encoded_signal::EncodedSignal;
use crate::kata_cursors::KataCursors;
use crate::state::container::{ContainerRecord, Slot};
use crate::state::dropped::DroppedSeqs;
pub(crate) use crate::state::read::ContainerSummary;

/// Limit on live containers. Each costs about a kilobyte here and two descriptors; a node runs some
/// hundred, a guest a few. Without a limit a process that may create cgroups below a root could
/// fill the agent's memory.
pub(crate) const MAX_CONTAINERS: usize = 8192;
/// Departed containers kept: acknowledged ones, for other readers, and unacknowledged ones.
const KEPT_ACKED: usize = 16;
const KEPT_UNACKED: usize = 1024;
/// Exits of execs kept for one container, oldest dropped first. Without a limit a probe every
/// second would fill the memory.
const KEPT_EXECS: usize = 64;
/// Sequence numbers of dropped signals that are kept; older ones are only counted.
const KEPT_DROPPED: usize = 64;
/// Pressure signals kept, oldest dropped first: the latest are the most useful, and a reader that
/// was away for long does not need the history.
const KEPT_PRESSURE: usize = 256;
const KEPT_DROPPED_PRESSURE: usize = 64;

/// When something was observed, by the boot clock and the wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timestamp {
    pub(crate) boot_ns: u64,
    pub(crate) wall_ms: u64,
}

/// All containers.
#[derive(Debug)]
pub(crate) struct State {
    seq: u64,
    acked: u64,
    containers: BTreeMap<Arc<str>, ContainerRecord>,
    index: BTreeMap<u64, (Arc<str>, Slot)>,
    /// Ids of departed containers, earliest first.
    departed: VecDeque<Arc<str>>,
    dropped: DroppedSeqs,
    /// By rising seq.
    pressure: VecDeque<EncodedSignal>,
    dropped_pressure: DroppedSeqs,
    appeared: u64,
    /// Cursors of consumers that read kills only.
    pub(crate) kata_cursors: KataCursors,
}

impl Default for State {
    fn default() -> Self {
        Self {
            seq: 0,
            acked: 0,
            containers: BTreeMap::new(),
            index: BTreeMap::new(),
            departed: VecDeque::new(),
            dropped: DroppedSeqs::new(KEPT_DROPPED),
            pressure: VecDeque::new(),
            dropped_pressure: DroppedSeqs::new(KEPT_DROPPED_PRESSURE),
            appeared: 0,
            kata_cursors: KataCursors::default(),
        }
    }
}

impl State {
    /// The sequence number of the latest change.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Releases memory that a burst needed.
    pub(crate) fn shrink(&mut self) {
        self.departed.shrink_to_fit();
        self.pressure.shrink_to_fit();
    }

    /// How many containers have appeared.
    pub(crate) fn appeared(&self) -> u64 {
        self.appeared
    }

    /// Adds a container, or starts a new run of a departed one. Kills up to `kills_before` are not
    /// signals. False: the limit on containers is reached.
    pub(crate) fn add(&mut self, id: &str, cgroup: &Arc<str>, kills_before: Option<u64>) -> bool {
        if !self.containers.contains_key(id) && self.containers.len() - self.departed.len() >= MAX_CONTAINERS
        {
            return false;
        }
        self.appeared += 1;
        let container = self.containers.entry(Arc::from(id)).or_default();
        if container.departed {
            self.departed.retain(|gone| **gone != *id);
        }
        (container.departed, container.exited, container.init_pid) = (false, false, None);
        container.cgroup = Arc::clone(cgroup);
        container.kills_before = container.kills_before.or(kills_before);
        if container.kills_total.is_none() {
            container.kills_total = kills_before;
            container.kills_acked = kills_before.unwrap_or(0);
        }
        true
    }

    /// The last known counter of a container, which may be departed.
    pub(crate) fn kills_total(&self, id: &str) -> Option<u64> {
        self.containers.get(id)?.kills_total
    }

    pub(crate) fn set_init(&mut self, id: &str, pid: u32) {
        if let Some(container) = self.containers.get_mut(id) {
            container.init_pid = Some(pid);
        }
    }

    pub(crate) fn set_limit(&mut self, id: &str, bytes: Option<u64>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.limit_bytes = bytes;
        }
    }

    /// Sets the counter when its first read succeeds late: kills up to it are not signals.
    pub(crate) fn set_baseline(&mut self, id: &str, total: u64) {
        if let Some(container) = self.containers.get_mut(id) {
            container.kills_before = container.kills_before.or(Some(total));
            container.kills_total = Some(total);
            container.kills_acked = total;
        }
    }

    /// Records that the counter rose to `kill.total`.
    pub(crate) fn kill(&mut self, id: &str, mut kill: OomKill, at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(slot) = container.slot(&Slot::Kill)
            && let Some(signal::Event::OomKill(previous)) = slot.decode().event
        {
            if slot.seq() <= self.acked {
                container.kills_acked = previous.total;
            } else {
                // The new signal replaces one that is not acknowledged: it is about both rises.
                kill.group = kill.group.max(previous.group);
            }
        }
        container.kills_total = Some(kill.total);
        // A removed cgroup has no limit to read.
        kill.limit_bytes = kill.limit_bytes.or(container.limit_bytes);
        kill.added = kill.total.saturating_sub(container.kills_acked);
        self.put(id, Slot::Kill, signal::Event::OomKill(kill), at);
    }

    /// Records pressure. Only the latest pressure signals are kept.
    pub(crate) fn pressure(&mut self, id: &str, pressure: Pressure, at: Timestamp) {
        if !self.containers.contains_key(id) {
            return;
        }
        let signal = self.signal(id, None, signal::Event::Pressure(pressure), at);
        self.pressure.push_back(EncodedSignal::new(&signal));
        if self.pressure.len() > KEPT_PRESSURE
            && let Some(oldest) = self.pressure.pop_front()
        {
            self.dropped_pressure.add(oldest.seq());
        }
    }

    /// Records the exit of a container, or of an exec in it.
    pub(crate) fn exit(&mut self, id: &str, exec: Option<&str>, exited: Exited, at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if exec.is_none() {
            container.exited = true;
        }
        let execs = || container.slots.iter().filter(|(slot, _)| matches!(slot, Slot::Exit(Some(_))));
        if exec.is_some()
            && execs().count() >= KEPT_EXECS
            && let Some((oldest, _)) = execs().min_by_key(|(_, signal)| signal.seq())
        {
            let oldest = oldest.clone();
            self.drop_slot(id, &oldest);
        }
        self.put(id, Slot::Exit(exec.map(str::to_owned)), signal::Event::Exited(exited), at);
    }

    /// Whether the exit of a container's current run is recorded.
    pub(crate) fn has_exited(&self, id: &str) -> bool {
        self.containers.get(id).is_some_and(|container| container.exited)
    }

    /// Marks a container as departed: it is kept for readers until it is evicted.
    pub(crate) fn depart(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if !std::mem::replace(&mut container.departed, true) {
            self.departed.push_back(Arc::from(id));
            self.evict();
        }
    }

    /// Removes a container at once.
    pub(crate) fn remove(&mut self, id: &str) {
        self.departed.retain(|gone| **gone != *id);
        self.pressure.retain(|signal| signal.decode().container_id != id);
        if let Some((id, container)) = self.containers.remove_entry(id) {
            for (slot, signal) in &container.slots {
                self.index.remove(&signal.seq());
                if *slot == Slot::Kill {
                    self.kata_cursors.retain(signal.seq(), &id);
                }
            }
        }
    }

    /// Acknowledges everything up to `seq`.
    pub(crate) fn ack(&mut self, seq: u64) {
        let seq = seq.min(self.seq);
        if seq > self.acked {
            self.acked = seq;
            while self.pressure.front().is_some_and(|signal| signal.seq() <= seq) {
                self.pressure.pop_front();
            }
            self.evict();
        }
    }

    fn signal(&mut self, id: &str, exec_id: Option<String>, event: signal::Event, at: Timestamp) -> Signal {
        self.seq += 1;
        Signal {
            seq: self.seq,
            container_id: id.to_owned(),
            exec_id,
            boot_ns: at.boot_ns,
            wall_ms: at.wall_ms,
            event: Some(event),
            ..Signal::default()
        }
    }

    fn put(&mut self, id: &str, slot: Slot, event: signal::Event, at: Timestamp) {
        let exec_id = match &slot {
            Slot::Exit(exec) => exec.clone(),
            Slot::Kill => None,
        };
        let signal = self.signal(id, exec_id, event, at);
        let Some((id, _)) = self.containers.get_key_value(id) else { return };
        let id = Arc::clone(id);
        let Some(container) = self.containers.get_mut(&id) else { return };
        if let Some(before) = container.take(&slot) {
            self.index.remove(&before.seq());
        }
        container.slots.reserve_exact(1);
        container.slots.push((slot.clone(), EncodedSignal::new(&signal)));
        self.index.insert(self.seq, (id, slot));
    }

    fn drop_slot(&mut self, id: &str, slot: &Slot) {
        if let Some(signal) = self.containers.get_mut(id).and_then(|container| container.take(slot)) {
            let evicted = self.index.remove(&signal.seq());
            self.dropped.add(signal.seq());
            if let Some((id, Slot::Kill)) = evicted {
                self.kata_cursors.retain(signal.seq(), &id);
            }
        }
    }

    /// Evicts the earliest departed containers above the limits.
    fn evict(&mut self) {
        let (mut acked, mut unacked) = (0, 0);
        let mut over = Vec::new();
        for id in self.departed.iter().rev() {
            let highest = self.containers.get(id).map_or(0, ContainerRecord::highest);
            let (count, limit) =
                if highest <= self.acked { (&mut acked, KEPT_ACKED) } else { (&mut unacked, KEPT_UNACKED) };
            *count += 1;
            if *count > limit {
                over.push(id.clone());
            }
        }
        if over.is_empty() {
            return;
        }
        for id in &over {
            let slots: Vec<Slot> = self
                .containers
                .get(id)
                .map(|it| it.slots.iter().map(|(slot, _)| slot.clone()).collect())
                .unwrap_or_default();
            for slot in slots {
                self.drop_slot(id, &slot);
            }
            self.containers.remove(id);
        }
        self.departed.retain(|id| !over.contains(id));
    }
}

#[cfg(test)]
mod tests;
