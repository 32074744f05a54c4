//! Accounting of dropped signals: how many a reader has missed above its cursor.

use std::collections::BTreeSet;

/// Sequence numbers of signals that were dropped before every reader had read them.
#[derive(Debug)]
pub(super) struct DroppedSeqs {
    known: BTreeSet<u64>,
    limit: usize,
    older: u64,
    oldest: u64,
}

impl DroppedSeqs {
    pub(super) fn new(limit: usize) -> Self {
        Self { known: BTreeSet::new(), limit, older: 0, oldest: 0 }
    }

    pub(super) fn add(&mut self, seq: u64) {
        self.known.insert(seq);
        if self.known.len() > self.limit
            && let Some(seq) = self.known.pop_first()
        {
            self.older += 1;
            self.oldest = self.oldest.max(seq);
        }
    }

    pub(super) fn after(&self, seq: u64) -> u64 {
        let known = seq.checked_add(1).map_or(0, |next| self.known.range(next..).count() as u64);
        known + if seq < self.oldest { self.older } else { 0 }
    }
}
