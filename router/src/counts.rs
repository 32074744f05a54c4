//! What is counted of sources and sinks: for `coroner status`, and for Prometheus.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more; answers how many there were before.
    pub fn one(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// So many more.
    pub fn more(&self, many: u64) {
        self.0.fetch_add(many, Ordering::Relaxed);
    }

    /// So far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of one source.
#[derive(Debug, Default)]
pub struct SourceCounts {
    /// Signals handed on.
    pub signals: Count,
    /// Signals its agent dropped before they were read.
    pub lost: Count,
    /// Signals that could not be decoded.
    pub refused: Count,
    /// Links that came up.
    pub links: Count,
    /// Pressure signals of a guest that came too fast, and were dropped.
    pub held_back: Count,
    /// Links that are up: 0 or 1.
    up: AtomicI64,
    /// It is gone for good.
    gone: AtomicBool,
    /// Containers it speaks for.
    containers: AtomicU64,
    /// Why its last link ended.
    problem: Mutex<Option<String>>,
}

impl SourceCounts {
    /// Says whether the link is up.
    pub fn connected(&self, up: bool) {
        self.up.store(i64::from(up), Ordering::Relaxed);
    }

    /// Says whether it is gone for good.
    pub fn lost_for_good(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Says how many containers it speaks for.
    pub fn speaks_for(&self, containers: usize) {
        self.containers.store(containers as u64, Ordering::Relaxed);
    }

    /// How many containers it speaks for.
    pub fn containers(&self) -> u64 {
        self.containers.load(Ordering::Relaxed)
    }

    /// Says why its link ended; `None`: it is up again.
    pub fn troubled(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why its last link ended.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `"connecting"`, `"up"`, `"down"` or `"lost"`.
    pub fn state(&self) -> &'static str {
        match self.links.get() {
            _ if self.gone.load(Ordering::Relaxed) => "lost",
            _ if self.is_connected() => "up",
            0 => "connecting",
            _ => "down",
        }
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.up.load(Ordering::Relaxed) > 0
    }
}

/// Of the guests there are.
#[derive(Debug, Default)]
pub struct GuestCounts(RwLock<BTreeMap<String, Arc<SourceCounts>>>);

impl GuestCounts {
    /// A guest came.
    pub fn add(&self, name: &str, counts: Arc<SourceCounts>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), counts);
    }

    /// It went.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(String, Arc<SourceCounts>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, counts)| (name.clone(), Arc::clone(counts))).collect()
    }
}

/// Of one sink.
#[derive(Debug, Default)]
pub struct SinkCounts {
    /// Actions, or records, it took.
    pub delivered: Count,
    /// Tries that failed.
    pub failed: Count,
    /// Documents that gave way.
    pub dropped: Dropped,
}

/// Why a document gave way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its queue was full.
    Full,
    /// It was not taken by its deadline.
    Deadline,
    /// The sink refused it.
    Refused,
    /// It was refused or given up, and the dead-letter file could not be written either.
    Unwritten,
    /// The router stopped.
    Stopped,
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 5] = [Self::Full, Self::Deadline, Self::Refused, Self::Unwritten, Self::Stopped];

    /// As status, metrics and dead letters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::Refused => "refused",
            Self::Unwritten => "unwritten",
            Self::Stopped => "stopped",
        }
    }
}

/// Documents that gave way, by reason.
#[derive(Debug, Default)]
pub struct Dropped([Count; DropReason::ALL.len()]);

impl Dropped {
    /// One more; answers how many there were before.
    pub fn one(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].one()
    }

    /// So far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// So far, by reason.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DropReason::ALL.into_iter().map(|reason| (reason.name(), self.get(reason)))
    }
}

/// Of the journal.
#[derive(Debug, Default)]
pub struct JournalCounts {
    /// Signals and rulings written.
    pub written: Count,
    /// Signals and rulings that could not be written, or not in time.
    pub unjournaled: Count,
    /// Bytes of its current file.
    pub bytes: AtomicU64,
    /// The last write failed.
    pub failing: AtomicBool,
}

/// The counts of a router, by the names of its parts.
#[derive(Debug, Default)]
pub struct Counts {
    /// In the order of the configuration.
    pub sources: Vec<(String, Arc<SourceCounts>)>,
    /// Guests come and go; by name.
    pub guests: GuestCounts,
    /// In the order of the configuration.
    pub sinks: Vec<(String, Arc<SinkCounts>)>,
    /// Of the journal.
    pub journal: Arc<JournalCounts>,
    /// Kills that were learnt after their container's exit had been ruled.
    pub late_kills: Arc<Count>,
    /// Reports whose topic no route takes.
    pub reports_unrouted: Arc<Count>,
}

impl Counts {
    /// Of this source.
    pub fn source(&self, name: &str) -> Arc<SourceCounts> {
        let found = self.sources.iter().find(|(it, _)| it == name);
        found.map(|(_, counts)| Arc::clone(counts)).unwrap_or_default()
    }

    /// Of this sink.
    pub fn sink(&self, name: &str) -> Arc<SinkCounts> {
        let found = self.sinks.iter().find(|(it, _)| it == name);
        found.map(|(_, counts)| Arc::clone(counts)).unwrap_or_default()
    }
}
