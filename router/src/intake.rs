//! Between sources and workers: says who a signal is about, and sends it to the worker that owns its container.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::mpsc;

use crate::arrival::Arrival;
use crate::case::Known;
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
    /// Who is who.
    pub identities: Identities,
    /// One a worker: a container's signals always go to the same one, so they stay in order.
    pub workers: Vec<mpsc::Sender<Task>>,
}

impl Intake {
    /// Runs until every source has ended.
    pub async fn run(mut self) {
        while let Some(mut arrival) = self.arrivals.recv().await {
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

fn shard(container: &str, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    container.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("less than the number of workers")
}
