//! Continues with the state recovered from the journal.
//! The field's name: crash recovery.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Config;
use crate::delivery::UnruledSignal;
use coroner_core::signal::{ContainerId, Event};
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
    kills_before_exits(in_order_of_source(accepted)).into_iter().filter_map(envelope).collect()
}

/// Puts the signals of each container in the order in which its source saw them. The journal has
/// another one where the record of an earlier signal could not be written, and its source sent it
/// again to the next router.
fn in_order_of_source(accepted: Vec<AcceptedSignal<'_>>) -> Vec<AcceptedSignal<'_>> {
    let mut places: HashMap<(String, ContainerId), Vec<usize>> = HashMap::new();
    for (at, accepted) in accepted.iter().enumerate() {
        let key = (accepted.source.to_string(), accepted.signal.target.container_id.clone());
        places.entry(key).or_default().push(at);
    }
    let mut rank: Vec<usize> = (0..accepted.len()).collect();
    for places in places.into_values() {
        let times: Option<Vec<u64>> = places.iter().map(|at| accepted[*at].signal.at.boot_ns).collect();
        // Without a time of each the journal's order is the best that is known.
        let Some(times) = times else { continue };
        let mut sorted: Vec<(u64, usize)> = times.into_iter().zip(places.iter().copied()).collect();
        sorted.sort_by_key(|(time, _)| *time);
        for ((_, from), to) in sorted.into_iter().zip(places) {
            rank[from] = to;
        }
    }
    let mut ranked: Vec<_> = rank.into_iter().zip(accepted).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, accepted)| accepted).collect()
}

/// Puts a kill before the exit of its container's init: it is known when that exit is released,
/// although it was not when the exit was accepted.
fn kills_before_exits(accepted: Vec<AcceptedSignal<'_>>) -> Vec<AcceptedSignal<'_>> {
    let is_exit = |it: &AcceptedSignal<'_>| {
        matches!(it.signal.event, Event::Exited(_)) && it.signal.target.exec_id.is_none()
    };
    // A kill with a later exit is that exit's: the container was started again.
    let exits = accepted.iter().enumerate().filter(|(_, it)| is_exit(it));
    let mut exits: HashMap<ContainerId, usize> =
        exits.map(|(at, it)| (it.signal.target.container_id.clone(), at)).collect();
    let mut placed: Vec<((usize, bool), AcceptedSignal<'_>)> = Vec::with_capacity(accepted.len());
    for (at, accepted) in accepted.into_iter().enumerate() {
        let container = &accepted.signal.target.container_id;
        let place = match &accepted.signal.event {
            Event::OomKill(_) => {
                exits.get(container).filter(|exit| **exit < at).map_or((at, true), |exit| (*exit, false))
            }
            Event::Forwarded(event) if event.is_creation() => {
                if exits.get(container).is_some_and(|exit| *exit < at) {
                    exits.remove(container);
                }
                (at, true)
            }
            _ => (at, true),
        };
        placed.push((place, accepted));
    }
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, accepted)| accepted).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use coroner_core::mode::Mode;
    use serde_json::json;

    use super::*;

    fn accepted(n: u64, container: &str, event: &serde_json::Value) -> AcceptedSignal<'static> {
        let signal = json!({
            "id": n.to_string(),
            "at": { "received-ms": n },
            "target": { "node": "n", "container-id": container },
            "event": event,
            "attributes": [],
        });
        AcceptedSignal {
            n,
            source: Cow::Borrowed("s"),
            mode: Mode::Sole,
            known: Cow::Owned(Vec::new()),
            usage_bytes: None,
            signal: Cow::Owned(serde_json::from_value(signal).unwrap()),
        }
    }

    #[test]
    fn recovered_signals_of_a_container_are_in_the_order_of_their_source() {
        let pressure = json!({ "other": { "kind": "k", "json": "{}" } });
        let at = |n, container: &str, boot_ns| {
            let mut accepted = accepted(n, container, &pressure);
            accepted.signal.to_mut().at.boot_ns = boot_ns;
            accepted
        };
        let signals = vec![
            at(1, "a", Some(40)),
            at(2, "b", None),
            at(3, "a", Some(10)),
            at(4, "b", Some(1)),
            at(5, "c", Some(2)),
            at(6, "a", Some(40)),
            at(7, "a", Some(20)),
        ];
        let order: Vec<u64> = in_order_of_source(signals).iter().map(|it| it.n).collect();
        assert_eq!(order, [3, 2, 7, 4, 5, 1, 6]);
    }

    #[test]
    fn recovered_kill_is_ruled_before_the_exit_of_its_container() {
        let exit = json!({ "exited": { "reconciled": false } });
        let kill = json!({ "oom-kill": { "evidence": "counter", "level": "container", "late": false } });
        let created = json!({ "forwarded": { "topic": "/tasks/create", "type-url": "", "value": [] } });
        let signals = [
            (1, "a", &exit),
            (2, "b", &kill),
            (3, "a", &kill),
            (4, "b", &exit),
            (5, "a", &kill),
            (6, "a", &created),
            (7, "a", &kill),
            (8, "a", &kill),
            (9, "c", &exit),
            (10, "c", &kill),
            (11, "c", &exit),
            (12, "c", &kill),
        ];
        let signals = signals.map(|(n, container, event)| accepted(n, container, event));
        let order: Vec<u64> = kills_before_exits(signals.into()).iter().map(|it| it.n).collect();
        assert_eq!(order, [3, 5, 1, 2, 4, 6, 7, 8, 9, 10, 12, 11]);
    }
}
