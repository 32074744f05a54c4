//! A signal on its way through the router, with what its source knows and how it hears that the signal is dealt with.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::case::Known;
use crate::config::Mode;
use crate::counts::SourceCounts;
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
    /// How the source hears that it is dealt with.
    pub ack: Ack,
}

/// What is the same for every signal of a source's stream.
#[derive(Debug)]
pub struct Origin {
    /// The source's name.
    pub source: String,
    /// Who else publishes for its containers.
    pub mode: Mode,
    /// What the source can know.
    pub known: Vec<Known>,
    /// Who speaks, where it is not trusted.
    pub guest: Option<Arc<Guest>>,
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

/// Tells the source that a signal is dealt with. Dropped without that, the source tells the signal again.
#[derive(Debug)]
pub struct Ack(Option<(u64, mpsc::Sender<u64>)>);

impl Ack {
    /// An ack for a sequence number.
    pub fn new(seq: u64, done: mpsc::Sender<u64>) -> Self {
        Self(Some((seq, done)))
    }

    /// An ack nobody waits for: replayed signals have none.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// The signal needs no more care.
    pub fn done(self) {
        if let Some((seq, done)) = self.0 {
            // The source keeps fewer signals under way than the channel holds; closed, it has begun a new stream.
            done.try_send(seq).ok();
        }
    }
}
