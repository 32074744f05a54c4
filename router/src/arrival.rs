//! A signal on its way through the router, with what its source knows and how it hears that the signal is dealt with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::case::Known;
use crate::config::Mode;
use crate::counts::SourceCounts;
use crate::journal::Journal;
use crate::signal::{ContainerId, Signal};

/// One signal as a source hands it on.
#[derive(Debug)]
pub struct Arrival {
    /// The raw fact; its owner is filled in on the way.
    pub signal: Signal,
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// Memory the container used when it was told, in bytes.
    pub usage_bytes: Option<u64>,
    /// Its limit in bytes, where the source knows it.
    pub memory_limit: Option<u64>,
    /// What the case had of its container in the recording this is of; else empty.
    pub attributes: Vec<(String, String)>,
    /// How the source hears that it is dealt with.
    pub ack: Ack,
}

/// What is the same for every signal of a source's stream.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The source's name.
    pub source: String,
    /// Who else publishes for its containers.
    pub mode: Mode,
    /// What the source can know.
    pub known: Vec<Known>,
    /// Who speaks, where it is not trusted.
    pub guest: Option<Arc<Guest>>,
    /// A shim's word: of its containers' ends nobody else's counts.
    pub shim: bool,
}

/// A guest, which may speak for its own containers alone. Its claims end with the last of it.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The only containers that are its own; `None`: those it speaks of first.
    pub containers: Option<BTreeSet<ContainerId>>,
    /// What is counted of it.
    pub counts: Arc<SourceCounts>,
}

/// Tells whoever keeps a signal that it is dealt with: its source, or once it is written, the journal. Dropped without that, it is told again.
/// Until then it holds a place among those that its source may have under way.
#[derive(Debug)]
pub struct Ack {
    keeper: Keeper,
    place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Keeper {
    Nobody,
    Source(u64, mpsc::Sender<u64>),
    Journal(u64, Journal),
}

impl Keeper {
    fn done(self) {
        match self {
            Self::Nobody => {}
            // The source keeps fewer signals under way than the channel holds; closed, it has begun a new stream.
            Self::Source(seq, done) => done.try_send(seq).unwrap_or(()),
            Self::Journal(n, journal) => journal.done(n),
        }
    }
}

impl Ack {
    /// To a source, for a sequence number.
    pub fn new(seq: u64, done: mpsc::Sender<u64>, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { keeper: Keeper::Source(seq, done), place }
    }

    /// To the journal, for the number it gave in an earlier run of the router.
    pub fn resumed(n: u64, journal: Journal) -> Self {
        Self { keeper: Keeper::Journal(n, journal), place: None }
    }

    /// An ack nobody waits for: replayed signals have none.
    pub fn nobody() -> Self {
        Self { keeper: Keeper::Nobody, place: None }
    }

    /// The journal has the signal under this number: who kept it need not any more.
    pub fn journaled(&mut self, n: u64, journal: Journal) {
        std::mem::replace(&mut self.keeper, Keeper::Journal(n, journal)).done();
    }

    /// The number that the journal gave, if it has the signal.
    pub fn number(&self) -> Option<u64> {
        match &self.keeper {
            Keeper::Journal(n, _) => Some(*n),
            Keeper::Nobody | Keeper::Source(..) => None,
        }
    }

    /// The signal needs no more care.
    pub fn done(self) {
        self.keeper.done();
        drop(self.place);
    }
}

/// The wall clock, unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
