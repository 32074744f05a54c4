//! Between sources and workers: refuses what a guest may not say, writes down what is accepted, says who a signal is about, and sends it to the worker
//! that owns its container.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::mpsc;

use crate::arrival::{Ack, Arrival};
use crate::case::Known;
use crate::claims::{Claims, Foreign};
use crate::identity::Identities;
use crate::journal::{Accepted, Accepting, Journal};
use crate::signal::ContainerId;

/// Signals taken at once: what has come meanwhile is written together.
const AT_ONCE: usize = 256;

/// A signal with everything a worker needs.
#[derive(Debug)]
pub struct Named {
    /// The signal, its owner filled in.
    pub arrival: Arrival,
    /// What can be known about it and changed by a ruling.
    pub known: Vec<Known>,
    /// Bytes, from the OCI spec.
    pub memory_limit: Option<u64>,
}

/// What a worker is handed.
#[derive(Debug)]
pub enum Task {
    /// A signal to rule on.
    Rule(Box<Named>),
    /// The lineup may be another: an idle worker lets go of what it no longer uses.
    Look,
}

/// Names signals and shards them by container.
#[derive(Debug)]
pub struct Intake {
    /// From every source.
    pub arrivals: mpsc::Receiver<Arrival>,
    /// Whose is whose.
    pub claims: Claims,
    /// Where what is accepted is written; `None`: sources keep it until it is delivered.
    pub journal: Option<Journal>,
    /// Accepted by an earlier run of this router, and not ruled.
    pub resumed: Vec<Arrival>,
    /// Ids of all it had accepted: a source may tell them again.
    pub taken: HashSet<String>,
    /// Who is who.
    pub identities: Identities,
    /// One a worker: a container's signals always go to the same one, so they stay in order.
    pub workers: Vec<mpsc::Sender<Task>>,
}

impl Intake {
    /// Runs until every source has ended.
    pub async fn run(mut self) {
        for arrival in std::mem::take(&mut self.resumed) {
            if !self.hand_on(arrival).await {
                return;
            }
        }
        let mut batch = Vec::with_capacity(AT_ONCE);
        while self.arrivals.recv_many(&mut batch, AT_ONCE).await > 0 {
            self.accept(&mut batch).await;
            for arrival in batch.drain(..) {
                if !self.hand_on(arrival).await {
                    return;
                }
            }
        }
    }

    /// Leaves in the batch what may be said and is new, written down.
    async fn accept(&mut self, batch: &mut Vec<Arrival>) {
        let mut kept = Vec::with_capacity(batch.len());
        for arrival in batch.drain(..) {
            let guest = arrival.origin.guest.as_ref();
            if let Err(foreign) = self.claims.check(&arrival.signal.target.container_id, guest) {
                refuse(arrival, &foreign);
            } else if self.taken.remove(&arrival.signal.id) {
                arrival.ack.done();
            } else {
                kept.push(arrival);
            }
        }
        if let Some(journal) = &self.journal {
            let mut lines = Accepting::default();
            let numbers: Vec<u64> =
                kept.iter().map(|arrival| journal.accept(&mut lines, |n| accepted(n, arrival))).collect();
            if journal.write(lines).await {
                for (arrival, n) in kept.iter_mut().zip(numbers) {
                    let journaled = Ack::journaled(n, journal.clone());
                    std::mem::replace(&mut arrival.ack, journaled).done();
                }
            }
        }
        *batch = kept;
    }

    /// False: the worker has ended, which ends the router; what was not accepted is told again.
    async fn hand_on(&mut self, mut arrival: Arrival) -> bool {
        let target = &mut arrival.signal.target;
        let identity = self.identities.of(&target.container_id).await;
        let mut known = arrival.origin.known.clone();
        known.extend_from_slice(arrival.origin.mode.writable());
        // A recording tells who its containers were; a live source never does.
        if target.owner.is_none() {
            target.containerd_namespace.clone_from(&identity.containerd_namespace);
            target.sandbox_id.clone_from(&identity.sandbox_id);
            target.owner.clone_from(&identity.owner);
        }
        if target.owner.is_some() {
            known.push(Known::Owner);
        }
        let worker = &self.workers[shard(&target.container_id, self.workers.len())];
        let named = Named { arrival, known, memory_limit: identity.memory_limit };
        worker.send(Task::Rule(Box::new(named))).await.is_ok()
    }
}

fn accepted(n: u64, arrival: &Arrival) -> Accepted<'_> {
    Accepted {
        n,
        source: Cow::Borrowed(&arrival.origin.source),
        mode: arrival.origin.mode,
        known: Cow::Borrowed(&arrival.origin.known),
        usage_bytes: arrival.usage_bytes,
        signal: Cow::Borrowed(&arrival.signal),
    }
}

/// Dealt with: the guest is not to tell it again.
fn refuse(arrival: Arrival, foreign: &Foreign) {
    let Some(guest) = &arrival.origin.guest else { return };
    let container = &arrival.signal.target.container_id;
    // The first says it; a guest could otherwise fill the log.
    if guest.counts.refused.one() == 0 {
        tracing::warn!(guest = guest.name, %container, because = %foreign, "a guest spoke for a container that is not its own; counting from now on");
    } else {
        tracing::debug!(guest = guest.name, %container, because = %foreign, "signal refused");
    }
    arrival.ack.done();
}

/// Which worker has this container.
pub(crate) fn shard(container: &ContainerId, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    container.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("less than the number of workers")
}
