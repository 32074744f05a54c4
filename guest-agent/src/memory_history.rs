//! The recent memory of one container: usage while it was above half of its limit, and its limits.
//! Pure: it is given what was read, and when.

use std::collections::VecDeque;
use std::time::Duration;

use coroner_proto::agent::{LimitChange, MemorySample};

use crate::cgroup::{Limit, MemoryStall};

/// Samples older than this are dropped.
pub(crate) const SPAN: Duration = Duration::from_secs(60);
/// Samples of a container: one a second. Each takes 20 bytes.
const MAX_SAMPLES: usize = 60;
/// Limits of a container. Without it a process that writes the limit in a loop could fill the
/// agent's memory.
const MAX_LIMITS: usize = 8;
/// A runtime makes a cgroup first and sets its limit then. "No limit" up to this long after the
/// cgroup appeared is not a limit that was changed.
const SETUP: Duration = Duration::from_secs(10);
/// Usage and limits are kept in this unit: the kernel counts pages, of at least this size.
const UNIT: u64 = 4096;
const NO_LIMIT: u32 = u32::MAX;

/// What was read of a container's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryReading {
    /// On the boot clock.
    pub(crate) boot_ns: u64,
    /// In bytes.
    pub(crate) usage: u64,
    /// The smallest limit of the container's cgroup and those above it.
    pub(crate) limit: Option<u64>,
    /// Cumulative, since the cgroup was made.
    pub(crate) stall: Option<MemoryStall>,
}

/// Samples and limits as a kill's evidence has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RecordedMemory {
    pub(crate) samples: Vec<MemorySample>,
    pub(crate) limits: Vec<LimitChange>,
    /// Entries that are left out.
    pub(crate) left_out: u32,
}

/// A sample in 20 bytes instead of 64: with 64 containers that is 77 KiB instead of 245. Times are
/// the low half of a number of microseconds: between two samples each rises by less than 71
/// minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedSample {
    at: u32,
    usage: u32,
    limit: u32,
    some: u32,
    full: u32,
}

/// A container's samples, the oldest first. All of them have a stall, or none has.
#[derive(Debug, Default)]
pub(crate) struct SampleRing {
    packed: VecDeque<PackedSample>,
    /// The latest one.
    latest: Option<MemoryReading>,
}

impl SampleRing {
    /// Adds a sample, and drops those that are too old.
    pub(crate) fn push(&mut self, reading: MemoryReading) {
        let before = self.latest.replace(reading);
        if before.is_some_and(|it| {
            !is_recent(it.boot_ns, reading.boot_ns) || it.stall.is_some() != reading.stall.is_some()
        }) {
            self.packed.clear();
        }
        let at = low_half(reading.boot_ns / 1000);
        let is_old = |it: &PackedSample| Duration::from_micros(at.wrapping_sub(it.at).into()) > SPAN;
        while self.packed.len() == MAX_SAMPLES || self.packed.front().is_some_and(is_old) {
            self.packed.pop_front();
        }
        if self.packed.len() == self.packed.capacity() {
            // Doubling would end at 64.
            let more = (MAX_SAMPLES - self.packed.len()).min(self.packed.len().max(6));
            self.packed.reserve_exact(more);
        }
        let stall = reading.stall.unwrap_or_default();
        self.packed.push_back(PackedSample {
            at,
            usage: pages(reading.usage),
            limit: reading.limit.map_or(NO_LIMIT, pages),
            some: low_half(stall.some_us),
            full: low_half(stall.full_us),
        });
    }

    /// The latest sample.
    pub(crate) fn latest(&self) -> Option<MemoryReading> {
        self.latest
    }

    /// The samples of the time up to `now_ns`.
    fn samples(&self, now_ns: u64) -> Vec<MemorySample> {
        let Some(latest) = self.latest else { return Vec::new() };
        let stall = latest.stall.unwrap_or_default();
        let last = self.packed.back();
        let before = |total: u64, of: fn(&PackedSample) -> u32, it: &PackedSample| {
            total.saturating_sub(last.map_or(0, |last| of(last).wrapping_sub(of(it))).into())
        };
        let unpacked = self.packed.iter().map(|it| MemorySample {
            boot_ns: before(latest.boot_ns / 1000, |it| it.at, it) * 1000,
            usage_bytes: u64::from(it.usage) * UNIT,
            limit_bytes: (it.limit != NO_LIMIT).then_some(u64::from(it.limit) * UNIT),
            some_us: latest.stall.map(|_| before(stall.some_us, |it| it.some, it)),
            full_us: latest.stall.map(|_| before(stall.full_us, |it| it.full, it)),
            ..MemorySample::default()
        });
        unpacked.filter(|it| is_recent(it.boot_ns, now_ns)).collect()
    }
}

/// The limits of a container's cgroup as they were read, the oldest first.
#[derive(Debug, Default)]
struct LimitHistory {
    changes: Vec<(u64, Limit)>,
    dropped: u32,
}

impl LimitHistory {
    /// Adds a limit unless it is the one before. `appeared_ns`: when the cgroup was made; none: not
    /// seen. Returns whether it was added.
    fn add(&mut self, boot_ns: u64, limit: Limit, appeared_ns: Option<u64>) -> bool {
        let is_setup = appeared_ns.is_some_and(|at| boot_ns.saturating_sub(at) <= nanoseconds(SETUP));
        match &mut self.changes[..] {
            [.., (_, latest)] if *latest == limit => return false,
            [only] if only.1 == Limit::Unlimited && is_setup => {
                *only = (boot_ns, limit);
                return true;
            }
            _ => {}
        }
        if self.changes.len() == MAX_LIMITS {
            self.changes.remove(0);
            self.dropped = self.dropped.saturating_add(1);
        }
        self.changes.reserve_exact(1);
        self.changes.push((boot_ns, limit));
        true
    }
}

/// What is kept of a container's memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryHistory {
    /// When its cgroup was made; none: not seen.
    appeared_ns: Option<u64>,
    limits: LimitHistory,
    /// The smallest limit above it; none: not read since the own limit changed.
    pub(crate) limit_above: Option<Limit>,
    /// Usage at the last check, in bytes.
    pub(crate) checked: Option<u64>,
    pub(crate) ring: Option<Box<SampleRing>>,
    /// It is above half of its limit: samples are taken.
    pub(crate) is_sampled: bool,
}

impl MemoryHistory {
    /// `appeared_ns`: when its cgroup was made, on the boot clock; none: not seen.
    pub(crate) fn new(appeared_ns: Option<u64>) -> Self {
        Self { appeared_ns, ..Self::default() }
    }

    /// Adds the container's own limit as it was read. Returns whether it is another one.
    pub(crate) fn add_limit(&mut self, boot_ns: u64, limit: Limit) -> bool {
        let is_added = self.limits.add(boot_ns, limit, self.appeared_ns);
        if is_added {
            self.limit_above = None;
        }
        is_added
    }

    /// The smaller one of the own limit and the one above.
    pub(crate) fn limit(&self) -> Option<u64> {
        let own = self.limits.changes.last().map(|(_, limit)| *limit);
        let bytes = [own, self.limit_above].into_iter().flatten().filter_map(|limit| match limit {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Unlimited => None,
        });
        bytes.min()
    }

    /// What a kill's evidence gets at `now_ns`.
    pub(crate) fn recorded(&self, now_ns: u64) -> RecordedMemory {
        let change = |(boot_ns, limit): &(u64, Limit)| LimitChange {
            boot_ns: *boot_ns,
            limit_bytes: match limit {
                Limit::Bytes(bytes) => Some(*bytes),
                Limit::Unlimited => None,
            },
            ..LimitChange::default()
        };
        RecordedMemory {
            samples: self.ring.as_ref().map(|ring| ring.samples(now_ns)).unwrap_or_default(),
            limits: self.limits.changes.iter().map(change).collect(),
            left_out: self.limits.dropped,
        }
    }

    /// Drops samples that are of no kill from now on.
    pub(crate) fn drop_old_samples(&mut self, now_ns: u64) {
        self.ring.take_if(|ring| ring.latest.is_none_or(|it| !is_recent(it.boot_ns, now_ns)));
    }
}

/// How full a container is, in thousandths of its limit.
pub(crate) fn fullness(usage: u64, limit: u64) -> u64 {
    usage.saturating_mul(1000) / limit.max(1)
}

fn is_recent(boot_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(boot_ns) <= nanoseconds(SPAN)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn low_half(number: u64) -> u32 {
    (number & 0xffff_ffff) as u32
}

/// In units; what cannot be counted so, 16 TiB, is as much as can.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(NO_LIMIT).min(NO_LIMIT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Past the times that a half holds.
    const BEGUN: u64 = 10_000 * SECOND;

    fn reading(second: u64) -> MemoryReading {
        let total = |more| (1 << 32) - 5_000_000 + second * 1_000_000 + more;
        MemoryReading {
            boot_ns: BEGUN + second * SECOND,
            usage: (1 << 30) + second * UNIT,
            limit: Some(2 << 30),
            stall: Some(MemoryStall { some_us: total(1), full_us: total(0) }),
        }
    }

    fn sample(of: MemoryReading) -> MemorySample {
        MemorySample {
            boot_ns: of.boot_ns,
            usage_bytes: of.usage,
            limit_bytes: of.limit,
            some_us: of.stall.map(|stall| stall.some_us),
            full_us: of.stall.map(|stall| stall.full_us),
            ..MemorySample::default()
        }
    }

    fn ring(readings: impl IntoIterator<Item = MemoryReading>) -> SampleRing {
        let mut ring = SampleRing::default();
        readings.into_iter().for_each(|reading| ring.push(reading));
        ring
    }

    #[test]
    fn samples_are_read_back_as_they_were_added() {
        // Their totals pass the half.
        let expect: Vec<MemorySample> = (0..10).map(|at| sample(reading(at))).collect();
        assert_eq!(ring((0..10).map(reading)).samples(BEGUN + 9 * SECOND), expect);
        let bare = |at| MemoryReading { limit: None, stall: None, ..reading(at) };
        let expect: Vec<MemorySample> = (0..10).map(|at| sample(bare(at))).collect();
        assert_eq!(ring((0..10).map(bare)).samples(BEGUN + 9 * SECOND), expect);
        assert_eq!(SampleRing::default().samples(BEGUN), []);
        let huge = MemoryReading { usage: u64::MAX, limit: Some(u64::MAX), ..reading(0) };
        let sample = ring([huge]).samples(huge.boot_ns).remove(0);
        assert!(sample.usage_bytes > 15 << 40 && sample.limit_bytes == Some(sample.usage_bytes));
    }

    #[test]
    fn samples_are_those_of_the_last_minute() {
        let ring = ring((0..200).map(reading));
        assert_eq!((ring.packed.len(), ring.packed.capacity()), (60, 60));
        let seconds = |now| {
            let samples = ring.samples(BEGUN + now * SECOND);
            let at = |it: Option<&MemorySample>| it.map(|it| (it.boot_ns - BEGUN) / SECOND);
            (at(samples.first()), at(samples.last()))
        };
        assert_eq!(seconds(199), (Some(140), Some(199)));
        assert_eq!(seconds(230), (Some(170), Some(199)));
        assert_eq!(seconds(260), (None, None));
    }

    #[test]
    fn samples_before_a_pause_are_dropped() {
        let mut ring = ring((0..30).map(reading));
        ring.push(reading(80));
        assert_eq!(ring.packed.len(), 11);
        // As far as a half reaches: the first would be taken for one of the last minute.
        ring.push(reading(80 + (1 << 32) / 1_000_000 + 1));
        assert_eq!(ring.packed.len(), 1);
        ring.push(MemoryReading { stall: None, ..ring.latest.unwrap() });
        assert_eq!(ring.packed.len(), 1);
    }

    fn limits(history: &MemoryHistory) -> Vec<(u64, Option<u64>)> {
        history.recorded(0).limits.iter().map(|it| (it.boot_ns / SECOND, it.limit_bytes)).collect()
    }

    #[test]
    fn limits_are_the_last_that_differ() {
        let mut history = MemoryHistory::default();
        history.add_limit(SECOND, Limit::Unlimited);
        assert_eq!(history.limit(), None);
        for (at, bytes) in [(2, 4096), (3, 4096), (4, 8192), (5, 4096)] {
            history.add_limit(at * SECOND, Limit::Bytes(bytes));
        }
        assert_eq!(limits(&history), [(1, None), (2, Some(4096)), (4, Some(8192)), (5, Some(4096))]);
        for at in 6..=12 {
            history.add_limit(at * SECOND, Limit::Bytes(at * 4096));
        }
        assert_eq!((limits(&history).len(), limits(&history)[0]), (8, (5, Some(4096))));
        assert_eq!(history.recorded(0).left_out, 3);
    }

    #[test]
    fn first_limit_that_a_runtime_sets_is_not_a_change() {
        for (appeared, at, expect) in [
            (Some(1), 2, vec![(2, Some(4096))]),
            (Some(1), 12, vec![(1, None), (12, Some(4096))]),
            (None, 2, vec![(1, None), (2, Some(4096))]),
        ] {
            let appeared_ns = appeared.map(|at| at * SECOND);
            let mut history = MemoryHistory::new(appeared_ns);
            history.add_limit(SECOND, Limit::Unlimited);
            history.add_limit(at * SECOND, Limit::Bytes(4096));
            assert_eq!(limits(&history), expect, "{appeared:?} {at}");
        }
        let mut history = MemoryHistory::new(Some(SECOND));
        history.add_limit(SECOND, Limit::Bytes(4096));
        history.add_limit(2 * SECOND, Limit::Bytes(8192));
        assert_eq!(limits(&history), [(1, Some(4096)), (2, Some(8192))]);
    }

    #[test]
    fn effective_limit_is_the_smaller_one() {
        let bytes = Limit::Bytes;
        for (own, above, expect) in [
            (None, None, None),
            (Some(Limit::Unlimited), Some(Limit::Unlimited), None),
            (Some(bytes(4)), None, Some(4)),
            (Some(bytes(4)), Some(bytes(3)), Some(3)),
            (Some(bytes(4)), Some(Limit::Unlimited), Some(4)),
            (Some(Limit::Unlimited), Some(bytes(3)), Some(3)),
        ] {
            let mut history = MemoryHistory::default();
            if let Some(own) = own {
                history.add_limit(0, own);
            }
            history.limit_above = above;
            assert_eq!(history.limit(), expect, "{own:?} {above:?}");
        }
        assert_eq!([fullness(1, 2), fullness(u64::MAX, 1 << 62), fullness(5, 0)], [500, 3, 5000]);
    }
}
