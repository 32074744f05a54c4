//! The recorder of memory: samples of the containers that are above half of their limit, once a
//! second, and the limits of all.
//!
//! No kernel interface of v2 reports that usage passed a value, so the other containers' usage is
//! checked: within a second while one of them grows or is new, then at growing gaps up to
//! [`LONGEST_GAP`]. An agent that is awake for something else checks every [`AWAKE_GAP`], and each
//! notice that a container is short of memory has that one checked at once. A container without a
//! limit is not checked.

use std::time::Duration;

use tokio::time::Instant;

use crate::cgroup::Limit;
use crate::evidence::EvidenceDetail;
use crate::memory_history::{MemoryReading, SampleRing, fullness};
use crate::shared_state::now;
use crate::watcher::Watcher;

/// Containers with samples, the fullest: 1.3 KiB each.
const MAX_SAMPLED: usize = 64;
/// Time between two samples, and between two checks while a container grows.
const SAMPLE_GAP: Duration = Duration::from_secs(1);
/// Time between two checks when nothing grows: an idle agent wakes once in it.
const LONGEST_GAP: Duration = Duration::from_secs(64);
/// Time between two checks of an agent that is awake.
const AWAKE_GAP: Duration = Duration::from_secs(5);
/// Containers checked at once. A read takes 12 µs: without this limit 8,192 containers would keep
/// every signal waiting for 100 ms, and longer at the first check, which reads the limits above.
const SLICE: usize = 16;
/// A container grows if its usage rose by this part of its limit since the last check.
const GROWTH: u64 = 32;
/// A sample that fell by this part of the limit may be one after a kill.
const FALL: u64 = 16;

/// When to check, and when to take samples.
#[derive(Debug)]
pub(crate) struct MemoryRecorder {
    is_on: bool,
    /// Containers that have samples.
    kept: Vec<u32>,
    /// None: no container is sampled.
    sample_at: Option<Instant>,
    /// None: no container has a limit.
    check_at: Option<Instant>,
    gap: Duration,
    last_check: Option<Instant>,
    /// The first container of the round's next slice.
    next_key: u32,
    /// In the round so far: a container has a limit, and one grew.
    is_limited: bool,
    has_grown: bool,
}

impl MemoryRecorder {
    /// Off where no evidence is kept.
    pub(crate) fn new(detail: EvidenceDetail) -> Self {
        Self {
            is_on: detail != EvidenceDetail::None,
            kept: Vec::new(),
            sample_at: None,
            check_at: None,
            gap: SAMPLE_GAP,
            last_check: None,
            next_key: 0,
            is_limited: false,
            has_grown: false,
        }
    }

    /// When there is something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.sample_at.into_iter().chain(self.check_at).min()
    }

    /// Checks within a second: a container is new, or has another limit.
    fn hasten(&mut self, now: Instant) {
        let soon = now + SAMPLE_GAP;
        self.check_at = Some(self.check_at.map_or(soon, |at| at.min(soon)));
        // The round ends as if one grew.
        self.has_grown = true;
    }

    /// Ends a slice. `last`: the last container of it, where the round goes on.
    fn end_slice(&mut self, now: Instant, last: Option<u32>) {
        self.last_check = Some(now);
        if let Some(next) = last.and_then(|key| key.checked_add(1)) {
            (self.next_key, self.check_at) = (next, Some(now));
            return;
        }
        self.gap = if self.has_grown { SAMPLE_GAP } else { (2 * self.gap).min(LONGEST_GAP) };
        self.check_at = self.is_limited.then_some(now + self.gap);
        (self.next_key, self.is_limited, self.has_grown) = (0, false, false);
    }
}

impl Watcher {
    /// Reads a container's own limit: it is new, its limit was written, or a process of it was
    /// killed. A limit below the usage has the kernel kill within the write, before its notice.
    pub(crate) fn read_limit(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let limit = self.hierarchy.limit(&container.cgroup);
        let bytes = match limit {
            Some(Limit::Bytes(bytes)) => Some(bytes),
            Some(Limit::Unlimited) | None => None,
        };
        self.shared.with(|state| state.set_limit(&container.id, bytes));
        if self.recorder.is_on
            && let Some(limit) = limit
            && container.memory.add_limit(now().boot_ns, limit)
        {
            self.recorder.hasten(Instant::now());
        }
    }

    /// Takes what is due: samples, or a check.
    pub(crate) fn record_due_memory(&mut self, at: Instant) {
        if self.recorder.sample_at.is_some_and(|due| due <= at) {
            self.take_samples(at);
        }
        if self.recorder.check_at.is_some_and(|due| due <= at) {
            self.check_slice(at);
        }
    }

    /// Checks if the agent is awake and did not for a while.
    pub(crate) fn check_memory_awake(&mut self) {
        let Some(last) = self.recorder.last_check.filter(|_| self.recorder.check_at.is_some()) else {
            return;
        };
        let at = Instant::now();
        if at >= last + AWAKE_GAP {
            self.check_slice(at);
        }
    }

    /// Checks a container that is short of memory.
    pub(crate) fn check_memory_of(&mut self, key: u32) {
        if self.recorder.is_on {
            self.check_memory(key, Instant::now());
        }
    }

    fn check_slice(&mut self, at: Instant) {
        let next = self.containers.range(self.recorder.next_key..).take(SLICE);
        let keys: Vec<u32> = next.map(|(key, _)| *key).collect();
        for key in &keys {
            self.check_memory(*key, at);
        }
        self.recorder.end_slice(at, keys.last().copied().filter(|_| keys.len() == SLICE));
    }

    /// Reads a container's usage, and begins to take samples above half of its limit.
    fn check_memory(&mut self, key: u32, at: Instant) {
        let Some(container) = self.containers.get_mut(&key).filter(|it| !it.gone) else { return };
        let memory = &mut container.memory;
        if memory.limit_above.is_none() {
            memory.limit_above = Some(self.hierarchy.limit_above(&container.cgroup));
        }
        let Some(limit) = memory.limit() else { return };
        self.recorder.is_limited = true;
        if memory.is_sampled {
            return;
        }
        memory.drop_old_samples(now().boot_ns);
        if memory.ring.is_none() {
            self.recorder.kept.retain(|kept| *kept != key);
        }
        let Some(usage) = self.hierarchy.usage(&container.cgroup) else { return };
        let before = memory.checked.replace(usage).unwrap_or(usage);
        self.recorder.has_grown |= usage.saturating_sub(before) > limit / GROWTH;
        if usage > limit / 2 && self.make_room(key, fullness(usage, limit)) {
            // A kill that was not read yet may have freed memory.
            self.poll_kills(key);
            self.take_sample(key);
            self.recorder.sample_at.get_or_insert(at + SAMPLE_GAP);
        }
    }

    /// Makes room for the samples of one more container. False: all others are fuller.
    fn make_room(&mut self, key: u32, full: u64) -> bool {
        if self.recorder.kept.contains(&key) {
            return true;
        }
        if self.recorder.kept.len() == MAX_SAMPLED {
            let of = |key: &u32| {
                let latest = self.containers.get(key)?.memory.ring.as_ref()?.latest()?;
                Some(fullness(latest.usage, latest.limit?))
            };
            let emptiest = self.recorder.kept.iter().enumerate().min_by_key(|(_, kept)| of(kept));
            let Some((place, other)) = emptiest.filter(|(_, kept)| of(kept) < Some(full)) else {
                return false;
            };
            if let Some(other) = self.containers.get_mut(other) {
                (other.memory.ring, other.memory.is_sampled) = (None, false);
            }
            self.recorder.kept.swap_remove(place);
        }
        self.recorder.kept.push(key);
        true
    }

    fn take_samples(&mut self, at: Instant) {
        let mut is_any_left = false;
        for key in self.recorder.kept.clone() {
            if self.containers.get(&key).is_some_and(|it| it.memory.is_sampled) {
                is_any_left |= self.take_sample(key);
            }
        }
        // Samples that are late do not follow each other closely.
        let planned = self.recorder.sample_at.unwrap_or(at) + SAMPLE_GAP;
        self.recorder.sample_at = is_any_left.then_some(planned.max(at + SAMPLE_GAP / 2));
    }

    /// Adds a sample while the container is above half of its limit. False: it is not any more.
    fn take_sample(&mut self, key: u32) -> bool {
        let Some(container) = self.containers.get(&key) else { return false };
        let latest = container.memory.ring.as_ref().and_then(|ring| ring.latest());
        let reading = self.read_memory(key);
        if let (Some(MemoryReading { usage, limit: Some(limit), .. }), Some(latest)) = (reading, latest)
            && usage < latest.usage.saturating_sub(limit / FALL)
        {
            // Before the sample is added: a kill has the samples from before it.
            self.poll_kills(key);
        }
        let Some(container) = self.containers.get_mut(&key) else { return false };
        let memory = &mut container.memory;
        let above_half = reading.filter(|it| it.limit.is_some_and(|limit| it.usage > limit / 2));
        memory.is_sampled = above_half.is_some();
        memory.checked = reading.map(|it| it.usage);
        if let Some(reading) = above_half {
            memory.ring.get_or_insert_with(|| Box::new(SampleRing::default())).push(reading);
        }
        memory.is_sampled
    }

    fn read_memory(&self, key: u32) -> Option<MemoryReading> {
        let container = self.containers.get(&key).filter(|it| !it.gone)?;
        let usage = self.hierarchy.usage(&container.cgroup)?;
        let stall = self.hierarchy.memory_stall(&container.cgroup);
        Some(MemoryReading { boot_ns: now().boot_ns, usage, limit: container.memory.limit(), stall })
    }

    /// Drops a container that is removed.
    pub(crate) fn forget_memory(&mut self, key: u32) {
        self.recorder.kept.retain(|kept| *kept != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaps in seconds until `count` rounds ended in which nothing grew.
    fn gaps(recorder: &mut MemoryRecorder, mut at: Instant, count: usize) -> Vec<u64> {
        let round = |_| {
            let due = recorder.due().unwrap();
            let gap = (due - at).as_secs();
            at = due;
            recorder.is_limited = true;
            recorder.end_slice(at, None);
            gap
        };
        (0..count).map(round).collect()
    }

    #[test]
    fn checks_slow_down_while_nothing_grows() {
        let (mut recorder, at) = (MemoryRecorder::new(EvidenceDetail::Full), Instant::now());
        assert_eq!(recorder.due(), None);
        recorder.hasten(at);
        assert_eq!(gaps(&mut recorder, at, 10), [1, 1, 2, 4, 8, 16, 32, 64, 64, 64]);
        let at = recorder.last_check.unwrap();
        recorder.hasten(at);
        assert_eq!(gaps(&mut recorder, at, 4), [1, 1, 2, 4]);
    }

    #[test]
    fn no_check_is_due_without_limits() {
        let (mut recorder, at) = (MemoryRecorder::new(EvidenceDetail::Counts), Instant::now());
        recorder.hasten(at);
        recorder.end_slice(at + SAMPLE_GAP, None);
        assert_eq!(recorder.due(), None);
        assert!(!MemoryRecorder::new(EvidenceDetail::None).is_on);
    }

    #[test]
    fn slice_is_followed_by_the_next_one() {
        let (mut recorder, at) = (MemoryRecorder::new(EvidenceDetail::Full), Instant::now());
        recorder.hasten(at);
        recorder.end_slice(at, Some(70));
        assert_eq!((recorder.due(), recorder.next_key), (Some(at), 71));
        recorder.is_limited = true;
        recorder.end_slice(at, None);
        assert_eq!((recorder.due(), recorder.next_key), (Some(at + SAMPLE_GAP), 0));
    }
}
