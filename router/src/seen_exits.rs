//! Exits that an agent reported beside the shim that is the authority for them. They are not
//! signals of their own: they complete the shim's report with what ended the process.

use std::collections::HashMap;

use coroner_core::fair_map::FairMap;
use coroner_core::mode::Known;
use coroner_core::signal::{ContainerId, Event, Exited, Signal};
use coroner_sources::envelope::Envelope;

/// Exits kept until the shim's report. Without a bound a guest could make up ends of containers
/// that do not end; eviction is fair, so that it evicts none but its own.
const KEPT: usize = 1024;

/// An agent's report of the exit of a container's init.
#[derive(Debug)]
pub(crate) struct SeenExit {
    pub(crate) exited: Exited,
    /// Whether that agent sees what sends signals.
    pub(crate) sees_cause: bool,
    /// Its pids are the shim's.
    is_of_node: bool,
}

#[derive(Debug)]
pub(crate) struct SeenExits {
    by_container: HashMap<ContainerId, Box<SeenExit>>,
    by_source: FairMap,
}

impl SeenExits {
    pub(crate) fn new() -> Self {
        Self { by_container: HashMap::new(), by_source: FairMap::new(KEPT) }
    }

    /// Keeps the exit of an init. Not persisted: without it the shim's exit lacks what sent its
    /// signal, and nothing else.
    pub(crate) fn add(&mut self, envelope: &Envelope) {
        let Some(exited) = envelope.signal.exit_of_init() else { return };
        let id = &envelope.signal.target.container_id;
        let seen = SeenExit {
            exited: exited.clone(),
            sees_cause: envelope.origin.known.contains(&Known::Cause),
            is_of_node: envelope.origin.guest.is_none(),
        };
        self.by_container.insert(id.clone(), Box::new(seen));
        if let Some(evicted) = self.by_source.add(id, &envelope.origin.source) {
            self.by_container.remove(&evicted);
        }
    }

    /// Takes the agent's report of this exit. One of an earlier run of the container is dropped.
    pub(crate) fn take(&mut self, signal: &Signal) -> Option<Box<SeenExit>> {
        let is_creation = matches!(&signal.event, Event::Forwarded(event) if event.is_creation());
        let exited = signal.exit_of_init();
        if !is_creation && exited.is_none() {
            return None;
        }
        let id = &signal.target.container_id;
        let seen = self.by_container.remove(id)?;
        self.by_source.remove(id);
        let has_same_pid = |exited: &Exited| {
            !seen.is_of_node
                || exited.pid.is_none()
                || seen.exited.pid.is_none()
                || exited.pid == seen.exited.pid
        };
        exited.is_some_and(has_same_pid).then_some(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coroner_core::mode::Mode;
    use coroner_sources::envelope::{Ack, Origin};
    use serde_json::json;

    use super::*;

    fn envelope(container: &str, event: &serde_json::Value) -> Envelope {
        let known = vec![Known::Cause];
        let origin = Origin { source: "s".to_owned(), mode: Mode::Beside, known, guest: None, shim: false };
        let signal = json!({
            "id": "i", "at": { "received-ms": 1 }, "event": event, "attributes": [],
            "target": { "node": "n", "container-id": container },
        });
        Envelope {
            signal: serde_json::from_value(signal).unwrap(),
            origin: Arc::new(origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::none(),
        }
    }

    fn exit(container: &str, pid: u32, is_init: bool) -> Envelope {
        let exited = json!({ "pid": pid, "is-init": is_init, "status": 137, "reconciled": false });
        envelope(container, &json!({ "exited": exited }))
    }

    #[test]
    fn exit_is_taken_once_by_the_same_process() {
        let mut seen = SeenExits::new();
        seen.add(&exit("c1", 7, true));
        assert!(seen.take(&exit("c2", 7, true).signal).is_none());
        assert!(seen.take(&exit("c1", 7, false).signal).is_none(), "another process");
        let taken = seen.take(&exit("c1", 7, true).signal).unwrap();
        assert_eq!((taken.exited.pid, taken.sees_cause), (Some(7), true));
        assert!(seen.take(&exit("c1", 7, true).signal).is_none());
    }

    #[test]
    fn exit_of_an_earlier_run_is_dropped() {
        let mut seen = SeenExits::new();
        let created = json!({ "topic": "/tasks/create", "type-url": "", "value": [], "published-ns": null });
        seen.add(&exit("c1", 7, true));
        assert!(seen.take(&envelope("c1", &json!({ "forwarded": created })).signal).is_none());
        assert!(seen.take(&exit("c1", 7, true).signal).is_none());
        seen.add(&exit("c1", 7, true));
        assert!(seen.take(&exit("c1", 8, true).signal).is_none(), "its pid is another");
        assert!(seen.take(&exit("c1", 7, true).signal).is_none());
    }

    #[test]
    fn exits_are_bounded_and_those_of_execs_are_not_kept() {
        let mut seen = SeenExits::new();
        seen.add(&exit("exec", 7, false));
        let mut of_another = exit("other", 7, true);
        let origin = of_another.origin.as_ref().clone();
        of_another.origin = Arc::new(Origin { source: "another".to_owned(), ..origin });
        seen.add(&of_another);
        for at in 0..KEPT + 4 {
            seen.add(&exit(&format!("c{at}"), 7, true));
        }
        assert!(seen.by_container.contains_key(&of_another.signal.target.container_id));
        assert_eq!((seen.by_container.len(), seen.by_source.len()), (KEPT, KEPT));
        assert!(seen.take(&exit("c4", 7, true).signal).is_none());
        assert!(seen.take(&exit("c5", 7, true).signal).is_some());
    }
}
