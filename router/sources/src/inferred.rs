//! Signals that no agent sent: the router infers them from a lost guest, a kata-agent's event, or a
//! snapshot after an absence.

use coroner_proto::agent;

use super::decode::MAX_CGROUP;
use super::signal_stream::SignalStream;
use coroner_core::signal::{ContainerId, Event, Evidence, Exited, GuestLost, OomKilled, Signal, SignalError};

/// `guest-lost` for one container.
pub(super) fn guest_lost(
    id: &str,
    stream: &SignalStream,
    reason: &str,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id.to_owned())?;
    let event = Event::GuestLost(GuestLost { reason: reason.to_owned() });
    Ok(stream.received(container_id, "lost", event, received_ms))
}

/// An OOM kill that was announced and is not counted by any witness.
pub(super) fn announced(
    id: String,
    stream: &SignalStream,
    seq: u64,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id)?;
    let event = Event::OomKill(OomKilled::new(Evidence::Announced));
    Ok(stream.received(container_id, seq, event, received_ms))
}

/// OOM kills that were counted while neither the router nor the agent ran.
pub(super) fn killed_unseen(
    message: &agent::Container,
    before: u64,
    now: u64,
    stream: &SignalStream,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(message.id.clone())?;
    let event = Event::OomKill(OomKilled {
        added: Some(now - before),
        total: Some(now),
        cgroup: (message.cgroup.len() <= MAX_CGROUP && !message.cgroup.is_empty())
            .then(|| message.cgroup.clone()),
        limit_bytes: message.limit_bytes,
        ..OomKilled::new(Evidence::Counter)
    });
    let id = stream.kills(&container_id, now);
    let attributes = vec![("reconciled".to_owned(), "true".to_owned())];
    Ok(Signal { id, attributes, ..stream.received(container_id, now, event, received_ms) })
}

/// The end of a container while neither the router nor the agent ran.
pub(super) fn ended_unseen(
    id: &str,
    status: Option<u32>,
    stream: &SignalStream,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id.to_owned())?;
    let event = Event::Exited(Exited { is_init: Some(true), status, reconciled: true, ..Exited::unknown() });
    let because = "it ended while neither router nor agent ran";
    let attributes = vec![("unknown-because".to_owned(), because.to_owned())];
    Ok(Signal { attributes, ..stream.received(container_id, "unseen", event, received_ms) })
}
