//! The stream of a source's signals: ids of events, and targets of signals.

use coroner_core::signal::{ContainerId, Event, Moment, Signal, Target};

/// What all signals of one stream share.
#[derive(Debug)]
pub(super) struct SignalStream {
    pub(super) node: String,
    pub(super) guest: Option<String>,
    pub(super) id: String,
}

impl SignalStream {
    /// The id of an event of this stream: see "Event ids" in docs/operating/sinks.md. No part
    /// contains a colon.
    pub(super) fn event(&self, container: &ContainerId, seq: impl std::fmt::Display) -> String {
        format!("{}:{}:{}:{container}:{seq}", self.node, self.guest.as_deref().unwrap_or(""), self.id)
    }

    /// The id of kills that were not reported as a signal: `total` is the counter's value.
    pub(super) fn kills(&self, container: &ContainerId, total: u64) -> String {
        self.event(container, format_args!("kills-{total}"))
    }

    /// The target of a signal about this container.
    pub(super) fn target(&self, container_id: ContainerId) -> Target {
        target(&self.node, self.guest.as_deref(), container_id)
    }

    /// A signal without a time of its own: only the time at which it was received is known.
    pub(super) fn received(
        &self,
        container_id: ContainerId,
        seq: impl std::fmt::Display,
        event: Event,
        received_ms: u64,
    ) -> Signal {
        Signal {
            id: self.event(&container_id, seq),
            at: Moment { boot_ns: None, wall_ms: None, received_ms },
            target: self.target(container_id),
            event,
            attributes: Vec::new(),
        }
    }
}

/// The target of a container about which only its id is known.
pub(super) fn target(node: &str, guest: Option<&str>, container_id: ContainerId) -> Target {
    Target {
        node: node.to_owned(),
        guest: guest.map(str::to_owned),
        containerd_namespace: None,
        sandbox_id: None,
        container_id,
        exec_id: None,
        owner: None,
    }
}
