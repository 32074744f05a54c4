//! What is known of every container, and the cursors readers have on it. Pure: no file, no clock, no socket.
//!
//! It is state, not a log: a container has one slot for kills and one for each exit. A change puts its slot under the
//! next sequence number, so a reader that is behind sees each slot once, at its latest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use coroner_proto::agent::{self, Exited, OomKill, Pressure, Signal, signal};
use protobuf::{Message, MessageField};

use crate::packed::Packed;
use crate::polls::Polls;

/// Containers that are there. Every one costs about a kilobyte here and two descriptors; a node runs some hundred, a guest a
/// few. Without a bound, who may make cgroups below a root could fill the agent's memory.
pub(crate) const MAX_CONTAINERS: usize = 8192;
/// Of containers that are gone, how many are kept for another reader, and how many because nobody dealt with them.
const KEPT_ACKED: usize = 16;
const KEPT_UNACKED: usize = 1024;
/// Containers in one page: decoded, each takes some 300 bytes while the answer is made.
const PAGE: usize = 64;
/// Exits of execs kept in one container, oldest dropped first. A probe every second would otherwise fill it.
const KEPT_EXECS: usize = 64;
/// Sequence numbers of dropped signals that are known one by one; older ones are only counted.
const KEPT_DROPPED: usize = 64;
/// Pressure signals kept, the oldest dropped first: the latest say most, and a reader that is away for long needs no history.
const KEPT_PRESSURE: usize = 256;
const KEPT_DROPPED_PRESSURE: usize = 64;

/// When something was seen, by the boot clock and the wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    pub(crate) boot_ns: u64,
    pub(crate) wall_ms: u64,
}

/// A container's slot: its kills, its own exit or that of an exec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Slot {
    Kill,
    Exit(Option<String>),
}

#[derive(Debug, Default)]
struct Container {
    cgroup: Arc<str>,
    init_pid: Option<u32>,
    kills_before: Option<u64>,
    kills_total: Option<u64>,
    /// What `added` counts from: the total that was last acknowledged.
    kills_acked: u64,
    limit_bytes: Option<u64>,
    /// A container has one or two, and one for each of its last execs.
    slots: Vec<(Slot, Packed)>,
    /// The run is over, and its slot says how.
    exited: bool,
    departed: bool,
}

impl Container {
    fn highest(&self) -> u64 {
        self.slots.iter().map(|(_, signal)| signal.seq()).max().unwrap_or(0)
    }

    fn slot(&self, slot: &Slot) -> Option<&Packed> {
        self.slots.iter().find(|(it, _)| it == slot).map(|(_, signal)| signal)
    }

    fn take(&mut self, slot: &Slot) -> Option<Packed> {
        let at = self.slots.iter().position(|(it, _)| it == slot)?;
        Some(self.slots.swap_remove(at).1)
    }

    /// The exit of the run that is over, none while it runs.
    fn exit(&self) -> Option<Exited> {
        match self.slot(&Slot::Exit(None)).filter(|_| self.exited)?.open().event? {
            signal::Event::Exited(exited) => Some(exited),
            _ => None,
        }
    }
}

/// Signals that were dropped before everybody had read them.
#[derive(Debug)]
struct Dropped {
    known: BTreeSet<u64>,
    most: usize,
    older: u64,
    oldest: u64,
}

impl Dropped {
    fn new(most: usize) -> Self {
        Self { known: BTreeSet::new(), most, older: 0, oldest: 0 }
    }

    fn add(&mut self, seq: u64) {
        self.known.insert(seq);
        if self.known.len() > self.most
            && let Some(seq) = self.known.pop_first()
        {
            self.older += 1;
            self.oldest = self.oldest.max(seq);
        }
    }

    fn after(&self, seq: u64) -> u64 {
        let known = seq.checked_add(1).map_or(0, |next| self.known.range(next..).count() as u64);
        known + if seq < self.oldest { self.older } else { 0 }
    }
}

/// All containers.
#[derive(Debug)]
pub(crate) struct State {
    seq: u64,
    acked: u64,
    containers: BTreeMap<Arc<str>, Container>,
    index: BTreeMap<u64, (Arc<str>, Slot)>,
    /// Containers that are gone, the earliest first.
    departed: VecDeque<Arc<str>>,
    dropped: Dropped,
    /// By rising seq.
    pressure: VecDeque<Packed>,
    dropped_pressure: Dropped,
    appeared: u64,
    /// Cursors of those who only ask for kills.
    pub(crate) polls: Polls,
}

impl Default for State {
    fn default() -> Self {
        Self {
            seq: 0,
            acked: 0,
            containers: BTreeMap::new(),
            index: BTreeMap::new(),
            departed: VecDeque::new(),
            dropped: Dropped::new(KEPT_DROPPED),
            pressure: VecDeque::new(),
            dropped_pressure: Dropped::new(KEPT_DROPPED_PRESSURE),
            appeared: 0,
            polls: Polls::default(),
        }
    }
}

/// Signals from a cursor on.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// As they are kept: decoded, each takes some 400 bytes.
    pub(crate) signals: Vec<Vec<u8>>,
    pub(crate) lost: u64,
    pub(crate) pressure_lost: u64,
}

/// A page of the state.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) containers: Vec<agent::Container>,
    pub(crate) as_of_seq: u64,
    pub(crate) more: bool,
}

/// What is known of one container.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) seq: u64,
    pub(crate) kills_total: Option<u64>,
    pub(crate) exit: Option<Exited>,
}

impl State {
    /// The number of the latest change.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Lets go of room that a storm needed.
    pub(crate) fn shrink(&mut self) {
        self.departed.shrink_to_fit();
        self.pressure.shrink_to_fit();
    }

    /// How many containers appeared.
    pub(crate) fn appeared(&self) -> u64 {
        self.appeared
    }

    /// A container is there. `kills_before`: kills up to there are no signals. One that was gone runs again. False: there
    /// are too many.
    pub(crate) fn appear(&mut self, id: &str, cgroup: &Arc<str>, kills_before: Option<u64>) -> bool {
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

    /// The last counter known of a container that may be gone.
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

    /// The counter was read for the first time, and late: kills up to there are no signals.
    pub(crate) fn set_baseline(&mut self, id: &str, total: u64) {
        if let Some(container) = self.containers.get_mut(id) {
            container.kills_before = container.kills_before.or(Some(total));
            container.kills_total = Some(total);
            container.kills_acked = total;
        }
    }

    /// The counter rose to `kill.total`.
    pub(crate) fn kill(&mut self, id: &str, mut kill: OomKill, at: Moment) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(told) = container.slot(&Slot::Kill)
            && told.seq() <= self.acked
            && let Some(signal::Event::OomKill(told)) = told.open().event
        {
            container.kills_acked = told.total;
        }
        container.kills_total = Some(kill.total);
        kill.added = kill.total.saturating_sub(container.kills_acked);
        self.put(id, Slot::Kill, signal::Event::OomKill(kill), at);
    }

    /// A container is short of something. Of these only the latest are kept.
    pub(crate) fn pressure(&mut self, id: &str, pressure: Pressure, at: Moment) {
        if !self.containers.contains_key(id) {
            return;
        }
        let signal = self.signal(id, None, signal::Event::Pressure(pressure), at);
        self.pressure.push_back(Packed::new(&signal));
        if self.pressure.len() > KEPT_PRESSURE
            && let Some(oldest) = self.pressure.pop_front()
        {
            self.dropped_pressure.add(oldest.seq());
        }
    }

    /// A container, or an exec in it, ended.
    pub(crate) fn exit(&mut self, id: &str, exec: Option<&str>, exited: Exited, at: Moment) {
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
            self.discard(id, &oldest);
        }
        self.put(id, Slot::Exit(exec.map(str::to_owned)), signal::Event::Exited(exited), at);
    }

    /// Whether the run that a container is in has been told to be over.
    pub(crate) fn has_exited(&self, id: &str) -> bool {
        self.containers.get(id).is_some_and(|container| container.exited)
    }

    /// A container's cgroup is gone: it is kept for readers, for a while.
    pub(crate) fn depart(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if !std::mem::replace(&mut container.departed, true) {
            self.departed.push_back(Arc::from(id));
            self.evict();
        }
    }

    /// Forgets a container at once.
    pub(crate) fn forget(&mut self, id: &str) {
        self.departed.retain(|gone| **gone != *id);
        self.pressure.retain(|signal| signal.open().container_id != id);
        if let Some((id, container)) = self.containers.remove_entry(id) {
            for (slot, signal) in &container.slots {
                self.index.remove(&signal.seq());
                if *slot == Slot::Kill {
                    self.polls.owe(signal.seq(), &id);
                }
            }
        }
    }

    /// Everything up to `seq` is taken care of.
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

    /// Signals above `after` by rising seq, as many as fit, and how many above it were dropped.
    pub(crate) fn next(&self, after: u64, most: usize, bytes: usize) -> News {
        let (lost, pressure_lost) = (self.dropped.after(after), self.dropped_pressure.after(after));
        let mut news = News { signals: Vec::new(), lost, pressure_lost };
        let Some(first) = after.checked_add(1) else { return News::default() };
        let slots =
            self.index.range(first..).filter_map(|(_, (id, slot))| self.containers.get(id)?.slot(slot));
        let (mut slots, mut size) = (slots.peekable(), 0);
        let mut pressure = self.pressure.iter().skip_while(|signal| signal.seq() < first).peekable();
        loop {
            let pressure_first = match (slots.peek(), pressure.peek()) {
                (None, None) => break,
                (Some(slot), Some(pressure)) => pressure.seq() < slot.seq(),
                (slot, _) => slot.is_none(),
            };
            let Some(signal) = (if pressure_first { pressure.next() } else { slots.next() }) else { break };
            size += signal.size();
            // The first always goes: it is far smaller than an answer, and nothing after it would ever come.
            if news.signals.len() >= most.max(1) || size > bytes && !news.signals.is_empty() {
                break;
            }
            news.signals.push(signal.bytes().to_vec());
        }
        news
    }

    /// The first kill above `after`, and its container, of those that are kept for consumers of Kata's call too.
    pub(crate) fn next_kill(&self, after: u64) -> Option<(u64, String)> {
        let above = self.index.range(after.checked_add(1)?..);
        let known =
            above.filter(|(_, (_, slot))| *slot == Slot::Kill).map(|(seq, (id, _))| (*seq, id)).next();
        let (seq, id) = known.into_iter().chain(self.polls.owed(after)).min()?;
        Some((seq, id.to_string()))
    }

    /// Containers after `id`, as many as fit.
    pub(crate) fn page(&self, id: &str, bytes: usize) -> Page {
        let mut page = Page { containers: Vec::new(), as_of_seq: self.seq, more: false };
        let mut size = 0;
        let after = (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded);
        for (id, container) in self.containers.range::<str, _>(after) {
            let container = agent::Container {
                id: id.to_string(),
                cgroup: container.cgroup.to_string(),
                init_pid: container.init_pid,
                kills_total: container.kills_total,
                exit: MessageField::from_option(container.exit()),
                limit_bytes: container.limit_bytes,
                kills_before: container.kills_before,
                ..agent::Container::default()
            };
            // Usage is read when the page is sent: a tag and ten bytes at most.
            size += encoded(&container) + 11;
            if page.containers.len() == PAGE || size > bytes && !page.containers.is_empty() {
                page.more = true;
                break;
            }
            page.containers.push(container);
        }
        page
    }

    /// What is known of one container.
    pub(crate) fn known(&self, id: &str) -> Known {
        self.containers.get(id).map_or_else(Known::default, |container| Known {
            seq: container.highest(),
            kills_total: container.kills_total,
            exit: container.exit(),
        })
    }

    fn signal(&mut self, id: &str, exec_id: Option<String>, event: signal::Event, at: Moment) -> Signal {
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

    fn put(&mut self, id: &str, slot: Slot, event: signal::Event, at: Moment) {
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
        container.slots.push((slot.clone(), Packed::new(&signal)));
        self.index.insert(self.seq, (id, slot));
    }

    fn discard(&mut self, id: &str, slot: &Slot) {
        if let Some(signal) = self.containers.get_mut(id).and_then(|container| container.take(slot)) {
            let forgotten = self.index.remove(&signal.seq());
            self.dropped.add(signal.seq());
            if let Some((id, Slot::Kill)) = forgotten {
                self.polls.owe(signal.seq(), &id);
            }
        }
    }

    /// Lets go of the earliest departed containers past what is kept.
    fn evict(&mut self) {
        let (mut acked, mut unacked) = (0, 0);
        let mut over = Vec::new();
        for id in self.departed.iter().rev() {
            let highest = self.containers.get(id).map_or(0, Container::highest);
            let (count, most) =
                if highest <= self.acked { (&mut acked, KEPT_ACKED) } else { (&mut unacked, KEPT_UNACKED) };
            *count += 1;
            if *count > most {
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
                self.discard(id, &slot);
            }
            self.containers.remove(id);
        }
        self.departed.retain(|id| !over.contains(id));
    }
}

/// Bytes of one element of a repeated field: its tag, its length and itself.
fn encoded(message: &impl Message) -> usize {
    usize::try_from(message.compute_size()).unwrap_or(usize::MAX / 2).saturating_add(6)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
