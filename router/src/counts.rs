//! What is counted of sources and sinks: for `coroner status`, and for Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.more(1);
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
    /// Links that are up: 0 or 1.
    up: AtomicI64,
}

impl SourceCounts {
    /// Says whether the link is up.
    pub fn connected(&self, up: bool) {
        self.up.store(i64::from(up), Ordering::Relaxed);
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.up.load(Ordering::Relaxed) > 0
    }
}

/// Of one sink.
#[derive(Debug, Default)]
pub struct SinkCounts {
    /// Actions, or records, it took.
    pub delivered: Count,
    /// Tries that failed.
    pub failed: Count,
    /// Records dropped because its lane was full.
    pub dropped_full: Count,
    /// Records dropped because they could not be written.
    pub dropped_unwritten: Count,
}

/// The counts of a router, by the names of its parts.
#[derive(Debug, Default)]
pub struct Counts {
    /// In the order of the configuration.
    pub sources: Vec<(String, Arc<SourceCounts>)>,
    /// In the order of the configuration.
    pub sinks: Vec<(String, Arc<SinkCounts>)>,
    /// Kills that were learnt after their container's exit had been ruled.
    pub late_kills: Arc<Count>,
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
