//! Which sequence number everything up to has been dealt with, when acks come in any order.

use std::collections::BTreeSet;

/// Follows what was handed on and what came back.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    /// Handed on, not yet dealt with.
    open: BTreeSet<u64>,
    /// The highest ever handed on.
    highest: u64,
}

impl Watermark {
    /// A signal is on its way.
    pub(super) fn begin(&mut self, seq: u64) {
        self.open.insert(seq);
        self.highest = self.highest.max(seq);
    }

    /// A signal that needs no care, because it was refused.
    pub(super) fn skip(&mut self, seq: u64) {
        self.highest = self.highest.max(seq);
    }

    /// A signal is dealt with.
    pub(super) fn done(&mut self, seq: u64) {
        self.open.remove(&seq);
    }

    /// Everything up to here is dealt with.
    pub(super) fn level(&self) -> u64 {
        self.open.first().map_or(self.highest, |lowest| lowest.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_signal_holds_the_level_and_nothing_else() {
        let mut mark = Watermark::default();
        assert_eq!(mark.level(), 0);
        for seq in [3, 5, 9] {
            mark.begin(seq);
        }
        mark.done(5);
        mark.done(9);
        assert_eq!(mark.level(), 2);
        mark.skip(12);
        mark.done(3);
        assert_eq!(mark.level(), 12);
    }

    #[test]
    fn a_stranger_that_counts_from_nothing_moves_no_level() {
        let mut mark = Watermark::default();
        mark.begin(0);
        assert_eq!(mark.level(), 0);
        mark.begin(u64::MAX);
        mark.done(0);
        assert_eq!(mark.level(), u64::MAX - 1);
    }
}
