//! Between sources and workers: refuses what a guest may not say, says who a signal is about, and sends it to the worker that owns its container.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::mpsc;

use crate::arrival::Arrival;
use crate::case::Known;
use crate::claims::{Claims, Foreign};
use crate::identity::Identities;

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
    /// Who is who.
    pub identities: Identities,
    /// One a worker: a container's signals always go to the same one, so they stay in order.
    pub workers: Vec<mpsc::Sender<Task>>,
}

impl Intake {
    /// Runs until every source has ended.
    pub async fn run(mut self) {
        while let Some(mut arrival) = self.arrivals.recv().await {
            let guest = arrival.origin.guest.as_ref();
            if let Err(foreign) = self.claims.check(&arrival.signal.target.container_id, guest) {
                refuse(arrival, &foreign);
                continue;
            }
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
            let worker = &self.workers[shard(target.container_id.as_str(), self.workers.len())];
            let named = Named { arrival, known, memory_limit: identity.memory_limit };
            if worker.send(Task::Rule(Box::new(named))).await.is_err() {
                // The worker has ended, which ends the router; the source tells the signal again.
                return;
            }
        }
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

fn shard(container: &str, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    container.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("less than the number of workers")
}
