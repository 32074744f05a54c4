//! The envelope: a signal with its origin and its acknowledgement, from the source to the delivery.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use coroner_journal::Ack;

use crate::SourceCounts;
use crate::settings::{Source, SourceKind};
use coroner_core::mode::Known;
use coroner_core::mode::Mode;
use coroner_core::signal::{ContainerId, Signal};

/// One signal with what its source knows.
#[derive(Debug)]
pub struct Envelope {
    /// The raw fact; the intake adds the owner.
    pub signal: Signal,
    /// The source it came from.
    pub origin: Arc<Origin>,
    /// Memory the container used at the signal's time, in bytes.
    pub usage_bytes: Option<u64>,
    /// The container's limit in bytes, where the source knows it.
    pub memory_limit: Option<u64>,
    /// The case's attributes in the recording, for a replay; else empty.
    pub attributes: Vec<(String, String)>,
    /// Acknowledges the signal once it was processed.
    pub ack: Ack,
}

impl Envelope {
    /// An envelope without facts about the container of its signal.
    pub fn new(signal: Signal, origin: Arc<Origin>, ack: Ack) -> Self {
        Self { signal, origin, usage_bytes: None, memory_limit: None, attributes: Vec::new(), ack }
    }
}

/// What all signals of a source's stream share.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The source's name.
    pub source: String,
    /// The source's mode: what else publishes for its containers.
    pub mode: Mode,
    /// What the source can know.
    pub known: Vec<Known>,
    /// The guest, where the source is not trusted.
    pub guest: Option<Arc<Guest>>,
    /// A shim's source: it is the authority for its containers' ends.
    pub shim: bool,
}

impl Origin {
    /// The origin of a source's signals; `known` is what the source can know.
    pub(crate) fn new(source: &Source, known: Vec<Known>, guest: Option<&Arc<Guest>>) -> Arc<Self> {
        Arc::new(Self {
            source: source.name.clone(),
            mode: source.mode,
            known,
            guest: guest.cloned(),
            shim: source.kind == SourceKind::Shim,
        })
    }
}

/// A guest, which may report on its own containers only. Its ownership ends when the last reference
/// is dropped.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The only containers it may report on; `None`: those it reports first.
    pub containers: Option<BTreeSet<ContainerId>>,
    /// Its counters.
    pub counts: Arc<SourceCounts>,
}

/// The wall clock, unix milliseconds.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
