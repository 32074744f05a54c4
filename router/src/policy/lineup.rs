//! The policies that rule, the same for every worker, and how workers hear of others.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::load::Policy;

/// The policies that rule from some signal on, the same for every worker.
#[derive(Debug)]
pub struct Lineup {
    /// Counts the chains of this router's life, from 1.
    pub generation: u64,
    /// In file-name order.
    pub policies: Vec<Arc<Policy>>,
}

/// The lineup that rules now. Cheap to share, and to look at for every signal.
#[derive(Clone, Debug)]
pub struct Lineups(Arc<ArcSwap<Lineup>>);

impl Lineups {
    /// One that is never swapped.
    pub fn fixed(policies: Vec<Arc<Policy>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Lineup { generation: 1, policies })))
    }

    /// None yet.
    pub(super) fn empty() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Lineup { generation: 0, policies: Vec::new() })))
    }

    /// From now on this one rules.
    pub(super) fn store(&self, lineup: Lineup) {
        self.0.store(Arc::new(lineup));
    }

    /// The one that rules now, if it is another than `generation`.
    pub fn after(&self, generation: u64) -> Option<Arc<Lineup>> {
        let lineup = self.0.load();
        (lineup.generation != generation).then(|| Arc::clone(&lineup))
    }

    /// The one that rules now.
    pub fn now(&self) -> Arc<Lineup> {
        self.0.load_full()
    }
}
