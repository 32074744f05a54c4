//! Continues with the state recovered from the journal.
//! The field's name: crash recovery.

use std::sync::Arc;

use crate::config::Config;
use crate::delivery::UnruledSignal;
use coroner_journal::{AcceptedSignal, Journal, RunningContainer};
use coroner_sources::envelope::{Ack, Envelope, Origin};
use coroner_sources::ownership::{Ownership, Registered, SignalReporter};

/// Owners of the containers that were running: a guest may report on a shim's container before the
/// shim reconnects.
pub(super) fn ownership(config: &Config, registered: Registered, running: &[RunningContainer]) -> Ownership {
    let mut ownership = Ownership::new(registered);
    for container in running {
        let source = config.sources.iter().find(|source| source.name == container.source);
        if let (Some(shim), Some(source)) = (&container.shim, source) {
            let shim = SignalReporter::Shim(shim.sandbox.as_deref(), source.mode);
            drop(ownership.check(&container.container, shim));
        }
    }
    ownership
}

/// The same signals as [`envelopes`], for the order of delivery.
pub(crate) fn unruled(accepted: &[AcceptedSignal<'_>]) -> Vec<UnruledSignal> {
    let signal =
        |it: &AcceptedSignal<'_>| (it.n, it.signal.target.container_id.clone(), it.signal.id.clone());
    accepted.iter().map(signal).collect()
}

/// Signals that were accepted and not ruled.
pub(crate) fn envelopes(accepted: Vec<AcceptedSignal<'static>>, journal: Option<&Journal>) -> Vec<Envelope> {
    let envelope = |accepted| {
        let AcceptedSignal { n, source, mode, known, usage_bytes, signal } = accepted;
        let origin =
            Origin { source: source.into_owned(), mode, known: known.into_owned(), guest: None, shim: false };
        Some(Envelope {
            signal: signal.into_owned(),
            origin: Arc::new(origin),
            usage_bytes,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::resumed(n, journal?.clone()),
        })
    };
    accepted.into_iter().filter_map(envelope).collect()
}
