//! The low watermark: the sequence number up to which all signals were processed, with
//! acknowledgements in any order.

use std::collections::BTreeSet;

/// Tracks in-flight signals by sequence number.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    /// In flight.
    open: BTreeSet<u64>,
    /// The highest sequence number so far.
    highest: u64,
}

impl Watermark {
    /// A signal is in flight.
    pub(super) fn begin(&mut self, seq: u64) {
        self.open.insert(seq);
        self.highest = self.highest.max(seq);
    }

    /// A refused signal, which is never in flight.
    pub(super) fn skip(&mut self, seq: u64) {
        self.highest = self.highest.max(seq);
    }

    /// A signal was processed.
    pub(super) fn done(&mut self, seq: u64) {
        self.open.remove(&seq);
    }

    /// All signals up to this sequence number were processed.
    pub(super) fn level(&self) -> u64 {
        self.open.first().map_or(self.highest, |lowest| lowest.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_in_flight_holds_watermark() {
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
    fn seq_zero_keeps_watermark() {
        let mut mark = Watermark::default();
        mark.begin(0);
        assert_eq!(mark.level(), 0);
        mark.begin(u64::MAX);
        mark.done(0);
        assert_eq!(mark.level(), u64::MAX - 1);
    }
}
