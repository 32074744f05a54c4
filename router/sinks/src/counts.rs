//! The counters of one sink, and why a document was dropped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use coroner_core::count::Count;
use tokio::time::Instant;

/// Counters of one sink.
#[derive(Debug, Default)]
pub struct SinkCounts {
    /// Actions, or records, that the sink accepted.
    pub delivered: Count,
    /// Failed attempts.
    pub failed: Count,
    /// Dropped documents.
    pub dropped: Dropped,
    /// Documents that wait for the sink, including those in delivery.
    queued: AtomicU64,
    /// Creation time of the oldest of them, in unix milliseconds; 0: none waits.
    queued_since_ms: AtomicU64,
    /// Whether the sink can be reached; see [`SinkCounts::connected`].
    down: AtomicBool,
    /// Error of the last attempt.
    problem: Mutex<Option<String>>,
}

impl SinkCounts {
    /// Records how many documents wait, and when the oldest of them was made.
    pub fn waiting(&self, queued: usize, oldest: Option<Instant>) {
        self.queued.store(queued as u64, Ordering::Relaxed);
        let since = oldest.map_or(0, |oldest| {
            let made = SystemTime::now().checked_sub(oldest.elapsed()).unwrap_or(UNIX_EPOCH);
            let since = made.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        self.queued_since_ms.store(since, Ordering::Relaxed);
    }

    /// Documents that wait for the sink.
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// When the oldest document that waits was made, in unix milliseconds.
    pub fn queued_since_ms(&self) -> Option<u64> {
        Some(self.queued_since_ms.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// Records that the sink can be reached, or why it cannot.
    pub fn reached(&self, problem: Option<String>) {
        self.down.store(problem.is_some(), Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Whether the sink can be reached, as of the last attempt.
    pub fn is_reachable(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    /// Why the sink cannot be reached.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a document was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its queue was full.
    Full,
    /// It was not accepted by its deadline.
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

/// Counters of dropped documents, by reason.
#[derive(Debug, Default)]
pub struct Dropped([Count; DropReason::ALL.len()]);

impl Dropped {
    /// Counts one more; returns the count before it.
    pub fn one(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].one()
    }

    /// The count for one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// The count for each reason.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DropReason::ALL.into_iter().map(|reason| (reason.name(), self.get(reason)))
    }
}
