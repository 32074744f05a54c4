//! Chain snapshots: the policies that all workers use, swapped as a whole.
//! The field's name: copy-on-write snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::policy::Policy;
use coroner_core::audit::Refused;

/// The policies of one generation, the same for every worker.
#[derive(Debug)]
pub struct ChainSnapshot {
    /// Counts the chains of this router, from 1.
    pub generation: u64,
    /// In file-name order.
    pub policies: Vec<Arc<Policy>>,
}

/// The current chain snapshot. Cheap to share, and to compare for every signal.
#[derive(Clone, Debug)]
pub struct ActiveChain(Arc<ArcSwap<ChainSnapshot>>, Arc<Reading>);

/// The result of the last reading of the policy directory.
#[derive(Debug, Default)]
pub struct Reading {
    refused: AtomicU64,
    kept: AtomicU64,
    failed: AtomicBool,
    loaded: AtomicBool,
}

impl Reading {
    /// Policies and files that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Policies that run in place of a refused file of their name.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Whether the directory could not be read: the last good chain keeps running.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether a chain was loaded from the directory since this router started.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    pub(super) fn record(&self, refused: &[Refused], failed: bool) {
        let kept = refused.iter().filter(|it| it.kept.is_some()).count();
        self.refused.store(refused.len() as u64, Ordering::Relaxed);
        self.kept.store(kept as u64, Ordering::Relaxed);
        self.failed.store(failed, Ordering::Relaxed);
        self.loaded.fetch_or(!failed, Ordering::Relaxed);
    }
}

impl ActiveChain {
    /// A chain that is never swapped.
    pub fn fixed(policies: Vec<Arc<Policy>>) -> Self {
        let snapshot = ChainSnapshot { generation: 1, policies };
        let chain = Self(Arc::new(ArcSwap::from_pointee(snapshot)), Arc::default());
        chain.1.record(&[], false);
        chain
    }

    /// A chain without policies, before the first load.
    pub(super) fn empty() -> Self {
        let snapshot = ChainSnapshot { generation: 0, policies: Vec::new() };
        Self(Arc::new(ArcSwap::from_pointee(snapshot)), Arc::default())
    }

    /// The result of the last reading of the directory.
    pub fn reading(&self) -> &Reading {
        &self.1
    }

    /// Swaps the snapshot.
    pub fn store(&self, snapshot: ChainSnapshot) {
        self.0.store(Arc::new(snapshot));
    }

    /// The current snapshot, if its generation is not `generation`.
    pub fn after(&self, generation: u64) -> Option<Arc<ChainSnapshot>> {
        let snapshot = self.0.load();
        (snapshot.generation != generation).then(|| Arc::clone(&snapshot))
    }

    /// The current snapshot.
    pub fn now(&self) -> Arc<ChainSnapshot> {
        self.0.load_full()
    }
}
