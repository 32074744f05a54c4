//! The live set: records that still count, that is signals in flight, the last ruling of each
//! container, and cursors. A new segment begins with them, and recovery starts from them.
//! The field's name: log compaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::codec::encode;
use super::record::{JournalRecord, PendingRecord};
use coroner_core::fair_map::FairMap;
use coroner_core::signal::ContainerId;

/// Cases of containers that ended, as many as the workers keep: for late kills.
const DEPARTED: usize = 1024;
/// Cases in all. Each takes one or two kilobytes here and in each new segment. Without a bound the
/// case of a container would stay for good if its end is never reported.
const CASES: usize = 4096;
/// Running containers.
const LIVING: usize = 8192;

type EncodedLine = Arc<[u8]>;

/// Lines of a signal in flight.
#[derive(Debug, Default)]
struct InFlight {
    accepted: Option<EncodedLine>,
    ruled: Option<EncodedLine>,
}

/// The last ruling of a container, which has its case, and the last one that published a TaskOOM.
#[derive(Debug)]
struct LastRulings {
    last: (u64, EncodedLine),
    oom: Option<(u64, EncodedLine)>,
}

/// Lines that still count. Above a bound the source with the most lines loses its oldest: one guest
/// cannot evict the lines of another.
#[derive(Debug)]
pub(super) struct LiveSet {
    open: BTreeMap<u64, InFlight>,
    kept: HashMap<ContainerId, LastRulings>,
    /// Containers by age of the last ruling.
    order: BTreeMap<u64, ContainerId>,
    cases: FairMap,
    departed: FairMap,
    running: HashMap<ContainerId, EncodedLine>,
    living: FairMap,
    cursors: HashMap<String, EncodedLine>,
    bytes: usize,
}

impl Default for LiveSet {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            kept: HashMap::new(),
            order: BTreeMap::new(),
            cases: FairMap::new(CASES),
            departed: FairMap::new(DEPARTED),
            running: HashMap::new(),
            living: FairMap::new(LIVING),
            cursors: HashMap::new(),
            bytes: 0,
        }
    }
}

impl LiveSet {
    /// Applies a record.
    pub(super) fn apply(&mut self, item: PendingRecord) {
        match item {
            PendingRecord::Accepted { n, line } => {
                self.bytes += line.len();
                self.open.entry(n).or_default().accepted = Some(line.into());
            }
            PendingRecord::Ruled { n, source, container, over, oom, line } => {
                self.ruled(n, &source, &container, oom, line.into());
                if over {
                    self.gone(&container);
                    if let Some(oldest) = self.departed.add(&container, &source) {
                        self.forget(&oldest);
                    }
                }
            }
            PendingRecord::Done { n, .. } => {
                if let Some(open) = self.open.remove(&n) {
                    self.bytes -= open.accepted.map_or(0, |line| line.len());
                }
            }
            PendingRecord::Cursor { source, line } => {
                self.cursors.insert(source, line.into());
            }
            PendingRecord::Running { source, container, line } => {
                if let Some(oldest) = self.living.add(&container, &source) {
                    self.running.remove(&oldest);
                }
                self.running.insert(container, line.into());
            }
            PendingRecord::Gone { container, .. } => self.gone(&container),
        }
    }

    fn gone(&mut self, container: &ContainerId) {
        self.running.remove(container);
        self.living.remove(container);
    }

    fn ruled(&mut self, n: u64, source: &str, container: &ContainerId, oom: bool, line: EncodedLine) {
        // Without an entry the signal's own line was damaged: its ruling is still to be delivered.
        self.open.entry(n).or_default().ruled = Some(Arc::clone(&line));
        self.bytes += line.len();
        let oom_before = self.take_kept(container).and_then(|before| before.oom);
        let oom = if oom { Some((n, Arc::clone(&line))) } else { oom_before };
        self.kept.insert(container.clone(), LastRulings { last: (n, line), oom });
        self.order.insert(n, container.clone());
        if let Some(oldest) = self.cases.add(container, source) {
            self.departed.remove(&oldest);
            self.take_kept(&oldest);
        }
    }

    fn take_kept(&mut self, container: &ContainerId) -> Option<LastRulings> {
        let kept = self.kept.remove(container)?;
        self.bytes -= kept.last.1.len();
        self.order.remove(&kept.last.0);
        Some(kept)
    }

    fn forget(&mut self, container: &ContainerId) {
        self.take_kept(container);
        self.cases.remove(container);
    }

    /// Approximate size of [`LiveSet::lines`], in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All lines; reading them leads to the same live set.
    pub(super) fn lines(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes + 4096);
        self.cursors.values().chain(self.running.values()).for_each(|line| out.extend_from_slice(line));
        let ooms = self.kept.values().filter_map(|kept| kept.oom.as_ref());
        let rulings: BTreeMap<u64, &EncodedLine> =
            self.kept.values().map(|kept| &kept.last).chain(ooms).map(|(n, line)| (*n, line)).collect();
        let numbers: BTreeSet<u64> = self.open.keys().chain(rulings.keys()).copied().collect();
        for n in numbers {
            let open = self.open.get(&n);
            let ruled = open.and_then(|open| open.ruled.as_ref());
            // The lines kept of a finished signal come first: its `done` must not end a signal in
            // flight that has the same number.
            if let Some(ruling) = rulings.get(&n).filter(|&&ruling| Some(ruling) != ruled) {
                out.extend_from_slice(ruling);
                out.extend(encode(&JournalRecord::Done { n }));
            }
            let accepted = open.and_then(|open| open.accepted.as_ref());
            accepted.into_iter().chain(ruled).for_each(|line| out.extend_from_slice(line));
        }
        out
    }

    /// Lines of signals in flight: as accepted, and as ruled.
    pub(super) fn open(&self) -> impl Iterator<Item = (Option<&[u8]>, Option<&[u8]>)> {
        self.open.values().map(|open| (open.accepted.as_deref(), open.ruled.as_deref()))
    }

    /// The last ruling of each container, and the last that published a TaskOOM, by age.
    pub(super) fn rulings(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let kept = self.order.values().filter_map(|container| self.kept.get(container));
        kept.map(|kept| (&*kept.last.1, kept.oom.as_ref().map(|(_, line)| &**line)))
    }

    /// Lines of running containers.
    pub(super) fn running(&self) -> impl Iterator<Item = &[u8]> {
        self.running.values().map(|line| &**line)
    }

    /// Lines of cursors.
    pub(super) fn cursors(&self) -> impl Iterator<Item = &[u8]> {
        self.cursors.values().map(|line| &**line)
    }
}
