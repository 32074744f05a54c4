//! The acknowledgement of one signal: to its source, or, once the signal is written, to the
//! journal.

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::Journal;

/// The acknowledgement of a signal: to its source, or, once it is written, to the journal. If it is
/// dropped without `done`, the signal is sent again (at-least-once). It also holds a permit: the
/// back-pressure of its source.
#[derive(Debug)]
pub struct Ack {
    target: AckTarget,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum AckTarget {
    None,
    Source(u64, mpsc::Sender<u64>),
    Journal(u64, Journal),
}

impl AckTarget {
    fn done(self) {
        match self {
            Self::None => {}
            // The source has fewer signals in flight than the channel's capacity; a closed channel
            // means a new stream.
            Self::Source(seq, done) => done.try_send(seq).unwrap_or(()),
            Self::Journal(n, journal) => journal.done(n),
        }
    }
}

impl Ack {
    /// An acknowledgement to a source, by sequence number.
    pub fn new(seq: u64, done: mpsc::Sender<u64>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { target: AckTarget::Source(seq, done), permit }
    }

    /// An acknowledgement to the journal, by the number from an earlier run of the router.
    pub fn resumed(n: u64, journal: Journal) -> Self {
        Self { target: AckTarget::Journal(n, journal), permit: None }
    }

    /// Without a receiver: for replayed signals.
    pub fn none() -> Self {
        Self { target: AckTarget::None, permit: None }
    }

    /// The journal has the signal as number `n`: the source is acknowledged, and `done` goes to the
    /// journal from now on.
    pub fn journaled(&mut self, n: u64, journal: Journal) {
        std::mem::replace(&mut self.target, AckTarget::Journal(n, journal)).done();
    }

    /// The number in the journal, if the signal is there.
    pub fn number(&self) -> Option<u64> {
        match &self.target {
            AckTarget::Journal(n, _) => Some(*n),
            AckTarget::None | AckTarget::Source(..) => None,
        }
    }

    /// The signal was processed.
    pub fn done(self) {
        self.target.done();
        drop(self.permit);
    }
}
