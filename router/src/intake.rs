//! Between sources and workers: refuses what a guest may not say, writes down what is accepted, says who a signal is about, and sends it to the worker
//! that owns its container.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::arrival::{Arrival, Origin};
use crate::case::Known;
use crate::claims::{Claims, Foreign, Speaker, Standing};
use crate::config::Mode;
use crate::identity::{Answer, Identities, Identity};
use crate::journal::{Accepted, Accepting, Journal};
use crate::signal::{ContainerId, Event};

/// Signals taken at once: what has come meanwhile is written together.
const AT_ONCE: usize = 256;
/// Signals that may wait for names. A guest that makes up names, each asked for at containerd, could otherwise have the router hold as many as it can
/// send in the time that containerd takes.
const WAITING: usize = 8192;

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

/// Where what is accepted is written, and what an earlier run of this router had accepted.
#[derive(Debug, Default)]
pub struct Earlier {
    /// `None`: sources keep their signals until they are delivered.
    pub journal: Option<Journal>,
    /// What was not ruled.
    pub resumed: Vec<Arrival>,
    /// Ids of all of it: a source may tell them again.
    pub taken: HashSet<String>,
}

/// Names signals and shards them by container.
#[derive(Debug)]
pub struct Intake {
    arrivals: mpsc::Receiver<Arrival>,
    claims: Claims,
    earlier: Earlier,
    identities: Identities,
    workers: Vec<mpsc::Sender<Task>>,
    /// Signals of containers whose name is asked for, in order, and how many. While they wait the others go on: a guest that makes up names would
    /// otherwise hold up everybody.
    waiting: HashMap<ContainerId, Vec<Arrival>>,
    held: usize,
    asked: JoinSet<Answer>,
}

/// The worker has ended, which ends the router; what was not accepted is told again.
struct Ended;

impl Intake {
    /// Between sources and workers, one channel a worker: a container's signals always go to the same one, so they stay in order.
    pub fn new(
        arrivals: mpsc::Receiver<Arrival>,
        claims: Claims,
        identities: Identities,
        workers: Vec<mpsc::Sender<Task>>,
        earlier: Earlier,
    ) -> Self {
        let (waiting, asked) = (HashMap::new(), JoinSet::new());
        Self { arrivals, claims, earlier, identities, workers, waiting, held: 0, asked }
    }

    /// Runs until every source has ended.
    pub async fn run(mut self) {
        // A part that ended ends the router, which says so.
        let (Ok(()) | Err(Ended)) = self.take_all().await;
    }

    async fn take_all(&mut self) -> Result<(), Ended> {
        for arrival in std::mem::take(&mut self.earlier.resumed) {
            self.take(arrival).await?;
        }
        let mut batch = Vec::with_capacity(AT_ONCE);
        loop {
            tokio::select! {
                count = self.arrivals.recv_many(&mut batch, AT_ONCE), if self.held < WAITING => {
                    if count == 0 {
                        break;
                    }
                    for arrival in self.accept(&mut batch).await {
                        self.take(arrival).await?;
                    }
                }
                Some(answer) = self.asked.join_next() => self.answered(answer).await?,
            }
        }
        while let Some(answer) = self.asked.join_next().await {
            self.answered(answer).await?;
        }
        Ok(())
    }

    /// What may be said and is new, written down.
    async fn accept(&mut self, batch: &mut Vec<Arrival>) -> Vec<Arrival> {
        let mut kept = Vec::with_capacity(batch.len());
        for mut arrival in batch.drain(..) {
            let target = &arrival.signal.target;
            let speaker = match &arrival.origin.guest {
                Some(guest) => Speaker::Guest(guest),
                None if arrival.origin.shim => {
                    Speaker::Shim(target.sandbox_id.as_deref(), arrival.origin.mode)
                }
                None => Speaker::Node,
            };
            let standing = match self.claims.check(&target.container_id, speaker) {
                Ok(standing) => standing,
                Err(foreign) => {
                    refuse(arrival, &foreign);
                    continue;
                }
            };
            let is_known = self.earlier.taken.remove(&arrival.signal.id);
            let mode = match (standing, &arrival.signal.event) {
                _ if is_known => None,
                (Standing::Own, _) => Some(arrival.origin.mode),
                (Standing::BesideShim(_), Event::Exited(_)) => None,
                // Its shim tells that end too.
                (Standing::BesideShim(_), Event::GuestLost(_)) => Some(Mode::Beside),
                // What is published of kills is the router's, as of all its shim tells.
                (Standing::BesideShim(mode), _) => Some(mode),
            };
            let Some(mode) = mode else {
                arrival.ack.done();
                continue;
            };
            if mode != arrival.origin.mode {
                arrival.origin = Arc::new(Origin { mode, ..Origin::clone(&arrival.origin) });
            }
            kept.push(arrival);
        }
        let Some(journal) = &self.earlier.journal else { return kept };
        let mut lines = Accepting::default();
        let numbers: Vec<u64> =
            kept.iter().map(|arrival| journal.accept(&mut lines, |n| accepted(n, arrival))).collect();
        if journal.write(lines).await {
            for (arrival, n) in kept.iter_mut().zip(numbers) {
                arrival.ack.journaled(n, journal.clone());
            }
        }
        kept
    }

    async fn take(&mut self, arrival: Arrival) -> Result<(), Ended> {
        let id = &arrival.signal.target.container_id;
        if let Some(waiting) = self.waiting.get_mut(id) {
            waiting.push(arrival);
            self.held += 1;
            return Ok(());
        }
        if arrival.signal.target.owner.is_some() {
            // Its source knows.
            return self.hand_on(arrival, &Identity::default()).await;
        }
        match self.identities.of(id) {
            Ok(identity) => self.hand_on(arrival, &identity).await,
            Err(question) => {
                self.waiting.insert(id.clone(), vec![arrival]);
                self.held += 1;
                self.asked.spawn(question.ask());
                Ok(())
            }
        }
    }

    async fn answered(&mut self, answer: Result<Answer, tokio::task::JoinError>) -> Result<(), Ended> {
        // What a look-up that failed was for would wait for ever.
        let answer = answer.map_err(|_| Ended)?;
        let waiting = self.waiting.remove(&answer.id).unwrap_or_default();
        self.held -= waiting.len();
        let identity = self.identities.learn(answer);
        for arrival in waiting {
            self.hand_on(arrival, &identity).await?;
        }
        Ok(())
    }

    async fn hand_on(&self, mut arrival: Arrival, identity: &Identity) -> Result<(), Ended> {
        let target = &mut arrival.signal.target;
        let mut known = arrival.origin.known.clone();
        known.extend_from_slice(arrival.origin.mode.writable());
        // A recording tells who its containers were; a live source never does.
        if target.owner.is_none() {
            let namespace = &mut target.containerd_namespace;
            *namespace = namespace.take().or_else(|| identity.containerd_namespace.clone());
            target.sandbox_id = target.sandbox_id.take().or_else(|| identity.sandbox_id.clone());
            target.owner.clone_from(&identity.owner);
        }
        if target.owner.is_some() {
            known.push(Known::Owner);
        }
        let worker = &self.workers[shard(&target.container_id, self.workers.len())];
        let memory_limit = arrival.memory_limit.or(identity.memory_limit);
        let named = Named { arrival, known, memory_limit };
        worker.send(Task::Rule(Box::new(named))).await.map_err(|_| Ended)
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

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::arrival::Ack;
    use crate::claims::Registered;
    use crate::signal::{Moment, Other, Signal, Target};

    fn arrival(container: &str, seq: u64) -> Arrival {
        let origin =
            Origin { source: "s".to_owned(), mode: Mode::Sole, known: Vec::new(), guest: None, shim: false };
        let target = Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: ContainerId::try_from(container.to_owned()).unwrap(),
            exec_id: None,
            owner: None,
        };
        let event = Event::Other(Other { kind: "test".to_owned(), json: "{}".to_owned() });
        let at = Moment { boot_ns: None, wall_ms: None, received_ms: 0 };
        let id = format!("{container}:{seq}");
        let signal = Signal { id, at, target, event, attributes: Vec::new() };
        Arrival {
            signal,
            origin: Arc::new(origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::nobody(),
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_name_holds_up_no_other_and_stays_in_order() {
        let folder = tempfile::tempdir().unwrap();
        // A containerd that takes links and never says a word.
        let _silent = UnixListener::bind(folder.path().join("containerd.sock")).unwrap();
        let mut identities = Identities::new(Some(folder.path().join("containerd.sock")));
        let known = ContainerId::try_from("known".to_owned()).unwrap();
        identities.learn(Answer::unknown(known));
        let (arrivals, from_sources) = mpsc::channel(16);
        let (worker, mut tasks) = mpsc::channel(16);
        for (container, seq) in [("asked", 1), ("known", 2), ("asked", 3), ("known", 4)] {
            arrivals.send(arrival(container, seq)).await.unwrap();
        }
        drop(arrivals);
        let intake = Intake::new(
            from_sources,
            Claims::new(Registered::default()),
            identities,
            vec![worker],
            Earlier::default(),
        );
        intake.run().await;
        let mut order = Vec::new();
        while let Some(Task::Rule(named)) = tasks.recv().await {
            order.push(named.arrival.signal.id);
        }
        assert_eq!(order, ["known:2", "known:4", "asked:1", "asked:3"]);
    }
}
