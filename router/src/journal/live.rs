//! Which lines still count: what is under way, the last ruling of each container, the cursors. A new file begins with them; so does a new router.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::entry::{Entry, Item};
use super::line::encode;
use crate::shares::Shares;
use crate::signal::ContainerId;

/// Cases of containers that ended, as many as the workers remember: for kills that are told late.
const DEPARTED: usize = 1024;
/// Cases in all. Each takes one or two kilobytes here and in each new file; a container whose end is never told would else keep its for good.
const CASES: usize = 4096;
/// Containers known to live.
const LIVING: usize = 8192;

type Line = Arc<[u8]>;

/// A signal under way.
#[derive(Debug, Default)]
struct Open {
    accepted: Option<Line>,
    ruled: Option<Line>,
}

/// The last ruling of a container, which holds its case, and the last that published a TaskOOM.
#[derive(Debug)]
struct Kept {
    last: (u64, Line),
    oom: Option<(u64, Line)>,
}

/// The lines that count. Whoever brought most gives way where there are too many: one guest cannot push out another's.
#[derive(Debug)]
pub(super) struct Live {
    open: BTreeMap<u64, Open>,
    kept: HashMap<ContainerId, Kept>,
    /// By age of the last ruling.
    order: BTreeMap<u64, ContainerId>,
    cases: Shares,
    departed: Shares,
    lives: HashMap<ContainerId, Line>,
    living: Shares,
    cursors: HashMap<String, Line>,
    bytes: usize,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            kept: HashMap::new(),
            order: BTreeMap::new(),
            cases: Shares::new(CASES),
            departed: Shares::new(DEPARTED),
            lives: HashMap::new(),
            living: Shares::new(LIVING),
            cursors: HashMap::new(),
            bytes: 0,
        }
    }
}

impl Live {
    /// Takes a line in.
    pub(super) fn take(&mut self, item: Item) {
        match item {
            Item::Accepted { n, line } => {
                self.bytes += line.len();
                self.open.entry(n).or_default().accepted = Some(line.into());
            }
            Item::Ruled { n, source, container, over, oom, line } => {
                self.ruled(n, &source, &container, oom, line.into());
                if over {
                    self.gone(&container);
                    if let Some(oldest) = self.departed.add(&container, &source) {
                        self.forget(&oldest);
                    }
                }
            }
            Item::Done { n, .. } => {
                if let Some(open) = self.open.remove(&n) {
                    self.bytes -= open.accepted.map_or(0, |line| line.len());
                }
            }
            Item::Cursor { source, line } => {
                self.cursors.insert(source, line.into());
            }
            Item::Lives { source, container, line } => {
                if let Some(oldest) = self.living.add(&container, &source) {
                    self.lives.remove(&oldest);
                }
                self.lives.insert(container, line.into());
            }
            Item::Gone { container, .. } => self.gone(&container),
        }
    }

    fn gone(&mut self, container: &ContainerId) {
        self.lives.remove(container);
        self.living.remove(container);
    }

    fn ruled(&mut self, n: u64, source: &str, container: &ContainerId, oom: bool, line: Line) {
        // Without it the signal's own line was damaged: what was ruled is still to be delivered.
        self.open.entry(n).or_default().ruled = Some(Arc::clone(&line));
        self.bytes += line.len();
        let oom_before = self.take_kept(container).and_then(|before| before.oom);
        let oom = if oom { Some((n, Arc::clone(&line))) } else { oom_before };
        self.kept.insert(container.clone(), Kept { last: (n, line), oom });
        self.order.insert(n, container.clone());
        if let Some(oldest) = self.cases.add(container, source) {
            self.departed.remove(&oldest);
            self.take_kept(&oldest);
        }
    }

    fn take_kept(&mut self, container: &ContainerId) -> Option<Kept> {
        let kept = self.kept.remove(container)?;
        self.bytes -= kept.last.1.len();
        self.order.remove(&kept.last.0);
        Some(kept)
    }

    fn forget(&mut self, container: &ContainerId) {
        self.take_kept(container);
        self.cases.remove(container);
    }

    /// About how much [`Live::lines`] takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything, so that reading it leads to the same.
    pub(super) fn lines(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes + 4096);
        self.cursors.values().chain(self.lives.values()).for_each(|line| out.extend_from_slice(line));
        let ooms = self.kept.values().filter_map(|kept| kept.oom.as_ref());
        let rulings: BTreeMap<u64, &Line> =
            self.kept.values().map(|kept| &kept.last).chain(ooms).map(|(n, line)| (*n, line)).collect();
        let numbers: BTreeSet<u64> = self.open.keys().chain(rulings.keys()).copied().collect();
        for n in numbers {
            let open = self.open.get(&n);
            let ruled = open.and_then(|open| open.ruled.as_ref());
            // What is kept of a signal that is done comes first: its end is not that of another under way with its number.
            if let Some(ruling) = rulings.get(&n).filter(|&&ruling| Some(ruling) != ruled) {
                out.extend_from_slice(ruling);
                out.extend(encode(&Entry::Done { n }));
            }
            let accepted = open.and_then(|open| open.accepted.as_ref());
            accepted.into_iter().chain(ruled).for_each(|line| out.extend_from_slice(line));
        }
        out
    }

    /// Lines of signals under way: as taken, and as ruled.
    pub(super) fn open(&self) -> impl Iterator<Item = (Option<&[u8]>, Option<&[u8]>)> {
        self.open.values().map(|open| (open.accepted.as_deref(), open.ruled.as_deref()))
    }

    /// The last ruling of each container, and the last that published a TaskOOM, by age.
    pub(super) fn rulings(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let kept = self.order.values().filter_map(|container| self.kept.get(container));
        kept.map(|kept| (&*kept.last.1, kept.oom.as_ref().map(|(_, line)| &**line)))
    }

    /// Lines of containers that live.
    pub(super) fn lives(&self) -> impl Iterator<Item = &[u8]> {
        self.lives.values().map(|line| &**line)
    }

    /// Lines of cursors.
    pub(super) fn cursors(&self) -> impl Iterator<Item = &[u8]> {
        self.cursors.values().map(|line| &**line)
    }
}
