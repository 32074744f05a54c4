//! The order of lifecycle events: one at a time for each container. A held exit does not block
//! events that do not depend on it.
//!
//! A held exit is parked when it reaches the head. The later events of its process and the
//! container's deletion wait for it; the process's own start goes first. Without this one held
//! reply would delay every process of the container.

use std::collections::{HashMap, VecDeque};

use crate::publish::Publish;
use coroner_containerd::holds::Published;
use coroner_core::ruling::TaskEvent;
use coroner_core::signal::CREATION;

const STARTS: [&str; 2] = ["/tasks/start", "/tasks/exec-started"];
const DELETION: &str = "/tasks/delete";

/// The next step of the lane.
#[derive(Debug)]
pub(super) enum Turn {
    /// An event to send; `Queues::sent` follows.
    Send(Box<Publish>),
    /// A held exit is parked; `Queues::release` follows.
    Park {
        /// The container's id.
        container: String,
        /// The id of its signal.
        signal: String,
        /// Its ruled status.
        status: Option<u32>,
    },
    /// The container was deleted: the starts that these parked exits wait for will not be received.
    Unstarted(Vec<String>),
}

/// A held exit that has reached the head of its queue.
#[derive(Debug)]
struct Parked {
    publish: Box<Publish>,
    awaits_start: bool,
}

/// The events of one container.
#[derive(Debug, Default)]
struct ContainerQueue {
    waiting: VecDeque<Box<Publish>>,
    parked: Vec<Parked>,
    /// Parked exits that were released.
    due: VecDeque<Box<Publish>>,
    sending: bool,
    /// It is in the list of queues to check.
    ready: bool,
}

/// The events of all containers.
#[derive(Debug, Default)]
pub(super) struct Queues {
    of: HashMap<String, ContainerQueue>,
    ready: VecDeque<String>,
    count: usize,
}

impl Queues {
    /// Number of events that are waiting, parked or being sent.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds an event behind those of its container.
    pub(super) fn push(&mut self, publish: Box<Publish>) {
        self.count += 1;
        let container = publish.container.clone();
        self.of.entry(container.clone()).or_default().waiting.push_back(publish);
        self.make_ready(container);
    }

    /// The next step, round-robin over the containers. `awaits_start` is queried for a held exit by
    /// its signal's id; `None`: no exit is held.
    pub(super) fn next(&mut self, awaits_start: Option<&dyn Fn(&str) -> bool>) -> Option<Turn> {
        while let Some(container) = self.ready.pop_front() {
            let Some(queue) = self.of.get_mut(&container) else { continue };
            queue.ready = false;
            match queue.next(awaits_start) {
                None if queue.is_idle() => drop(self.of.remove(&container)),
                None => {}
                Some(turn) => {
                    if !matches!(turn, Turn::Send(_)) {
                        self.make_ready(container);
                    }
                    return Some(turn);
                }
            }
        }
        None
    }

    /// Records that an event was sent. Returns the parked exits that waited for it, if it was their
    /// process's start.
    pub(super) fn sent(&mut self, publish: &Publish) -> Vec<String> {
        self.count -= 1;
        let Some(queue) = self.of.get_mut(&publish.container) else { return Vec::new() };
        queue.sending = false;
        let waited = match STARTS.contains(&publish.event.topic()) {
            true => queue.resolve_starts(|parked| parked.publish.exec() == publish.exec()),
            false => Vec::new(),
        };
        self.make_ready(publish.container.clone());
        waited
    }

    /// Releases a parked exit.
    pub(super) fn release(&mut self, container: &str, signal: &str, published: Published) {
        let Some(queue) = self.of.get_mut(container) else { return };
        if let Some(at) = queue.parked.iter().position(|it| it.publish.signal == signal) {
            let mut publish = queue.parked.remove(at).publish;
            publish.release(published);
            queue.due.push_back(publish);
            self.make_ready(container.to_owned());
        }
    }

    /// Everything that is not being sent.
    pub(super) fn drain(self) -> impl Iterator<Item = Box<Publish>> {
        self.of.into_values().flat_map(|queue| {
            let parked = queue.parked.into_iter().map(|it| it.publish);
            queue.due.into_iter().chain(parked).chain(queue.waiting)
        })
    }

    fn make_ready(&mut self, container: String) {
        if let Some(queue) = self.of.get_mut(&container)
            && !std::mem::replace(&mut queue.ready, true)
        {
            self.ready.push_back(container);
        }
    }
}

impl ContainerQueue {
    fn next(&mut self, awaits_start: Option<&dyn Fn(&str) -> bool>) -> Option<Turn> {
        if self.sending {
            return None;
        }
        let publish = match self.due.pop_front() {
            Some(due) => due,
            None => match self.first_free() {
                Some(at) => self.waiting.remove(at)?,
                None => return self.unstarted(),
            },
        };
        match awaits_start.filter(|_| publish.is_held()) {
            Some(awaits_start) => {
                let (container, signal) = (publish.container.clone(), publish.signal.clone());
                let status = publish.event.status();
                self.parked.push(Parked { awaits_start: awaits_start(&signal), publish });
                Some(Turn::Park { container, signal, status })
            }
            None => {
                self.sending = true;
                Some(Turn::Send(publish))
            }
        }
    }

    /// The first event that waits for neither a parked exit nor an earlier event of its process.
    fn first_free(&self) -> Option<usize> {
        let mut behind = Vec::new();
        for (at, next) in self.waiting.iter().enumerate() {
            let exec = next.exec();
            if !behind.contains(&exec) && !self.parked.iter().any(|parked| parked.holds_up(next)) {
                return Some(at);
            }
            // No event overtakes one of the container itself.
            exec?;
            behind.push(exec);
        }
        None
    }

    /// The parked exits that wait for a start, if the container's deletion waits for them. A shim
    /// publishes starts before the deletion.
    fn unstarted(&mut self) -> Option<Turn> {
        let is_deleted = self.waiting.iter().any(|it| is_deletion(it));
        let unstarted = if is_deleted { self.resolve_starts(|_| true) } else { Vec::new() };
        (!unstarted.is_empty()).then_some(Turn::Unstarted(unstarted))
    }

    fn resolve_starts(&mut self, of: impl Fn(&Parked) -> bool) -> Vec<String> {
        let awaiting = self.parked.iter_mut().filter(|it| it.awaits_start && of(it));
        awaiting
            .map(|parked| {
                parked.awaits_start = false;
                parked.publish.signal.clone()
            })
            .collect()
    }

    fn is_idle(&self) -> bool {
        !self.sending && self.waiting.is_empty() && self.parked.is_empty() && self.due.is_empty()
    }
}

impl Parked {
    /// Whether a later event depends on this exit.
    fn holds_up(&self, next: &Publish) -> bool {
        let topic = next.event.topic();
        if is_deletion(next) {
            return true;
        }
        if topic == CREATION {
            return !self.awaits_start;
        }
        if next.event == TaskEvent::Oom || next.exec() != self.publish.exec() {
            return false;
        }
        // Its own creation and start.
        !(self.awaits_start && (STARTS.contains(&topic) || topic == "/tasks/exec-added"))
    }
}

fn is_deletion(publish: &Publish) -> bool {
    publish.event.topic() == DELETION && publish.exec().is_none()
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
