//! The counters of the journal.

use std::sync::atomic::{AtomicBool, AtomicU64};

use coroner_core::count::Count;

/// The counters of the journal.
#[derive(Debug, Default)]
pub struct JournalCounts {
    /// Signals and rulings written.
    pub written: Count,
    /// Signals and rulings that could not be written, or not in time.
    pub unjournaled: Count,
    /// Bytes of the current segment.
    pub bytes: AtomicU64,
    /// The last write failed.
    pub failing: AtomicBool,
}
