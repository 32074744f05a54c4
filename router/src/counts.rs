//! The counts of sources, sinks and the journal, for `coroner status` and for Prometheus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use coroner_core::count::Count;
pub use coroner_journal::JournalCounts;
pub use coroner_sinks::counts::{DropReason, Dropped, SinkCounts};
pub use coroner_sources::{LinkState, SourceCounts, UnwatchedContainer};

/// The counts of all current guests.
#[derive(Debug, Default)]
pub struct GuestCounts(RwLock<BTreeMap<String, Arc<SourceCounts>>>);

impl GuestCounts {
    /// Adds a guest.
    pub fn add(&self, name: &str, counts: Arc<SourceCounts>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), counts);
    }

    /// Removes a guest.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The counts of each guest, sorted by name.
    pub fn all(&self) -> Vec<(String, Arc<SourceCounts>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, counts)| (name.clone(), Arc::clone(counts))).collect()
    }
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
    /// Counts of the journal.
    pub journal: Arc<JournalCounts>,
    /// Kills reported after their container's exit had been ruled.
    pub late_kills: Arc<Count>,
    /// Reports that match no route.
    pub reports_unrouted: Arc<Count>,
    /// Containers that the node's agent does not find; `None`: not known.
    pub unwatched: Arc<Mutex<Option<Vec<UnwatchedContainer>>>>,
}

impl Counts {
    /// Counts of the source; new ones if it is not configured.
    pub fn source(&self, name: &str) -> Arc<SourceCounts> {
        let found = self.sources.iter().find(|(it, _)| it == name);
        found.map(|(_, counts)| Arc::clone(counts)).unwrap_or_default()
    }

    /// Counts of the sink; new ones if it is not configured.
    pub fn sink(&self, name: &str) -> Arc<SinkCounts> {
        let found = self.sinks.iter().find(|(it, _)| it == name);
        found.map(|(_, counts)| Arc::clone(counts)).unwrap_or_default()
    }
}
