//! What a new router takes over from the journal of the one before.

use std::sync::Arc;

use crate::arrival::{Ack, Arrival, Origin};
use crate::claims::{Claims, Registered, Speaker};
use crate::config::Config;
use crate::journal::{Accepted, Journal, Lives};

/// Whose containers those are that lived: a guest may speak of a shim's container before that shim does again.
pub(super) fn claims(config: &Config, registered: Registered, lives: &[Lives]) -> Claims {
    let mut claims = Claims::new(registered);
    for lives in lives {
        let source = config.sources.iter().find(|source| source.name == lives.source);
        if let (Some(shim), Some(source)) = (&lives.shim, source) {
            let shim = Speaker::Shim(shim.sandbox.as_deref(), source.mode);
            drop(claims.check(&lives.container, shim));
        }
    }
    claims
}

/// Signals that were accepted and not ruled, once more.
pub(super) fn arrivals(accepted: Vec<Accepted<'static>>, journal: Option<&Journal>) -> Vec<Arrival> {
    let arrival = |accepted| {
        let Accepted { n, source, mode, known, usage_bytes, signal } = accepted;
        let origin =
            Origin { source: source.into_owned(), mode, known: known.into_owned(), guest: None, shim: false };
        Some(Arrival {
            signal: signal.into_owned(),
            origin: Arc::new(origin),
            usage_bytes,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::resumed(n, journal?.clone()),
        })
    };
    accepted.into_iter().filter_map(arrival).collect()
}
