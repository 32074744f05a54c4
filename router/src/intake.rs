//! The intake, between sources and workers: admits, persists, enriches and dispatches signals.
//! Refuses what a guest may not report, deduplicates by id, writes to the journal, adds the owner,
//! and sends each signal to its container's worker.
//! The field's name: acknowledge after write.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::seen_exits::SeenExits;
use coroner_containerd::{Identities, Identity, LookupResult};
use coroner_core::mode::{Known, Mode};
use coroner_core::signal::{ContainerId, Event, Exited, Signal};
use coroner_journal::{AcceptedSignal, Accepting, Journal};
use coroner_sources::envelope::{Envelope, Origin};
use coroner_sources::ownership::{Authority, NotOwner, Ownership, SignalReporter};
use coroner_sources::shim::UnmanagedPods;

/// Signals per batch: what arrives meanwhile shares one write.
const BATCH: usize = 256;
/// Signals that may wait for a look-up. Without this limit a guest that makes up names, each looked
/// up at containerd, could have the router hold as many signals as it can send until containerd
/// answers.
const WAITING_MAX: usize = 8192;

/// A signal with everything a worker needs.
#[derive(Debug)]
pub struct NamedSignal {
    /// The signal with its owner.
    pub envelope: Envelope,
    /// What can be known about it, and what a ruling can change.
    pub known: Vec<Known>,
    /// Bytes, from the OCI spec.
    pub memory_limit: Option<u64>,
    /// The same exit as an agent reported it beside the shim.
    pub seen_exit: Option<Box<Exited>>,
}

/// A message for a worker.
#[derive(Debug)]
pub enum WorkerTask {
    /// Rule on a signal.
    Rule(Box<NamedSignal>),
    /// Check for a new chain snapshot: an idle worker drops policies it no longer uses.
    CheckChain,
}

/// The journal, and what it recovered for the intake.
#[derive(Debug, Default)]
pub struct IntakeRecovery {
    /// `None`: sources keep their signals until they are delivered.
    pub journal: Option<Journal>,
    /// Signals that were accepted and not ruled.
    pub resumed: Vec<Envelope>,
    /// Ids of accepted signals, for deduplication: a source may send them again.
    pub seen: HashSet<String>,
}

/// Adds owners to signals and shards them by container.
#[derive(Debug)]
pub struct Intake {
    envelopes: mpsc::Receiver<Envelope>,
    ownership: Ownership,
    recovery: IntakeRecovery,
    identities: Identities,
    unmanaged: UnmanagedPods,
    seen_exits: SeenExits,
    workers: Vec<mpsc::Sender<WorkerTask>>,
    /// Signals that wait for the look-up of their container, in order, and their number. Other
    /// signals pass meanwhile: otherwise a guest that makes up names would block all sources.
    waiting: HashMap<ContainerId, Vec<Envelope>>,
    held: usize,
    lookups: JoinSet<LookupResult>,
}

/// A worker has ended, which ends the router. Signals that were not accepted are sent again by
/// their sources.
struct Ended;

impl Intake {
    /// The intake has one channel per worker. A container's signals all go to the same worker, so
    /// they stay in order.
    pub fn new(
        envelopes: mpsc::Receiver<Envelope>,
        ownership: Ownership,
        (identities, unmanaged): (Identities, UnmanagedPods),
        workers: Vec<mpsc::Sender<WorkerTask>>,
        recovery: IntakeRecovery,
    ) -> Self {
        let (waiting, lookups) = (HashMap::new(), JoinSet::new());
        let (held, seen_exits) = (0, SeenExits::new());
        Self {
            envelopes,
            ownership,
            recovery,
            identities,
            unmanaged,
            seen_exits,
            workers,
            waiting,
            held,
            lookups,
        }
    }

    /// Runs until every source has ended.
    pub async fn run(mut self) {
        // The task's end ends the router, which logs it.
        let (Ok(()) | Err(Ended)) = self.run_until_closed().await;
    }

    async fn run_until_closed(&mut self) -> Result<(), Ended> {
        for envelope in std::mem::take(&mut self.recovery.resumed) {
            self.enrich(envelope).await?;
        }
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                count = self.envelopes.recv_many(&mut batch, BATCH), if self.held < WAITING_MAX => {
                    if count == 0 {
                        break;
                    }
                    for envelope in self.accept(&mut batch).await {
                        self.enrich(envelope).await?;
                    }
                }
                Some(answer) = self.lookups.join_next() => self.looked_up(answer).await?,
            }
        }
        while let Some(answer) = self.lookups.join_next().await {
            self.looked_up(answer).await?;
        }
        Ok(())
    }

    /// Admits signals, and persists those that are new.
    async fn accept(&mut self, batch: &mut Vec<Envelope>) -> Vec<Envelope> {
        let mut kept = Vec::with_capacity(batch.len());
        for mut envelope in batch.drain(..) {
            let target = &envelope.signal.target;
            let reporter = match &envelope.origin.guest {
                Some(guest) => SignalReporter::Guest(guest),
                None if envelope.origin.shim => {
                    SignalReporter::Shim(target.sandbox_id.as_deref(), envelope.origin.mode)
                }
                None => SignalReporter::Node,
            };
            let authority = match self.ownership.check(&target.container_id, reporter) {
                Ok(authority) => authority,
                Err(not_owner) => {
                    refuse(envelope, &not_owner);
                    continue;
                }
            };
            let is_known = self.recovery.seen.remove(&envelope.signal.id);
            let mode = match (authority, &envelope.signal.event) {
                _ if is_known => None,
                (Authority::Own, _) => Some(envelope.origin.mode),
                (Authority::BesideShim(_), Event::Exited(_)) => {
                    self.seen_exits.add(&envelope);
                    None
                }
                // The shim reports that end too.
                (Authority::BesideShim(_), Event::GuestLost(_)) => Some(Mode::Beside),
                // Kills are published in the shim's mode, as everything its shim reports.
                (Authority::BesideShim(mode), _) => Some(mode),
            };
            let Some(mode) = mode else {
                envelope.ack.done();
                continue;
            };
            if mode != envelope.origin.mode {
                envelope.origin = Arc::new(Origin { mode, ..Origin::clone(&envelope.origin) });
            }
            kept.push(envelope);
        }
        let Some(journal) = &self.recovery.journal else { return kept };
        let mut lines = Accepting::default();
        let numbers: Vec<Option<u64>> = kept
            .iter()
            .map(|it| is_journaled(&it.signal).then(|| journal.accept(&mut lines, |n| accepted(n, it))))
            .collect();
        if journal.write(lines).await {
            for (envelope, n) in kept.iter_mut().zip(numbers) {
                if let Some(n) = n {
                    envelope.ack.journaled(n, journal.clone());
                }
            }
        }
        kept
    }

    async fn enrich(&mut self, envelope: Envelope) -> Result<(), Ended> {
        let id = &envelope.signal.target.container_id;
        if let Some(waiting) = self.waiting.get_mut(id) {
            waiting.push(envelope);
            self.held += 1;
            return Ok(());
        }
        if envelope.signal.target.owner.is_some() {
            // The source knows the owner.
            return self.dispatch(envelope, &Identity::default()).await;
        }
        match self.identities.of(id) {
            Ok(identity) => self.dispatch(envelope, &identity).await,
            Err(lookup) => {
                self.waiting.insert(id.clone(), vec![envelope]);
                self.held += 1;
                self.lookups.spawn(lookup.run());
                Ok(())
            }
        }
    }

    async fn looked_up(&mut self, answer: Result<LookupResult, tokio::task::JoinError>) -> Result<(), Ended> {
        // Without an answer the waiting signals would wait for ever.
        let answer = answer.map_err(|_| Ended)?;
        let waiting = self.waiting.remove(&answer.id).unwrap_or_default();
        self.held -= waiting.len();
        let identity = self.identities.insert(answer);
        for envelope in waiting {
            self.dispatch(envelope, &identity).await?;
        }
        Ok(())
    }

    async fn dispatch(&mut self, mut envelope: Envelope, identity: &Identity) -> Result<(), Ended> {
        let target = &mut envelope.signal.target;
        let mut known = envelope.origin.known.clone();
        known.extend_from_slice(envelope.origin.mode.writable());
        // A recording has the owners; a live source never does.
        if target.owner.is_none() {
            let namespace = &mut target.containerd_namespace;
            *namespace = namespace.take().or_else(|| identity.containerd_namespace.clone());
            target.sandbox_id = target.sandbox_id.take().or_else(|| identity.sandbox_id.clone());
            target.owner.clone_from(&identity.owner);
            if is_of_node(&envelope.origin) {
                self.unmanaged.mark(&mut envelope.signal);
            }
        }
        if envelope.signal.target.owner.is_some() {
            known.push(Known::Owner);
        }
        let worker = &self.workers[shard(&envelope.signal.target.container_id, self.workers.len())];
        let memory_limit = envelope.memory_limit.or(identity.memory_limit);
        let seen_exit = self.seen_exits.take(&envelope.signal);
        known.extend(seen_exit.iter().filter(|it| it.sees_cause).map(|_| Known::Cause));
        let seen_exit = seen_exit.map(|it| Box::new(it.exited));
        let named = NamedSignal { envelope, known, memory_limit, seen_exit };
        worker.send(WorkerTask::Rule(Box::new(named))).await.map_err(|_| Ended)
    }
}

/// Whether a watcher of the node itself reports: no shim, and no guest.
fn is_of_node(origin: &Origin) -> bool {
    !origin.shim && origin.guest.is_none()
}

/// Evidence is not: it is a hundred times a signal's size, and what it proves is the kill's signal.
fn is_journaled(signal: &Signal) -> bool {
    !matches!(signal.event, Event::Evidence(_))
}

fn accepted(n: u64, envelope: &Envelope) -> AcceptedSignal<'_> {
    AcceptedSignal {
        n,
        source: Cow::Borrowed(&envelope.origin.source),
        mode: envelope.origin.mode,
        known: Cow::Borrowed(&envelope.origin.known),
        usage_bytes: envelope.usage_bytes,
        signal: Cow::Borrowed(&envelope.signal),
    }
}

/// Acknowledges a refused signal, so that the guest does not send it again.
fn refuse(envelope: Envelope, not_owner: &NotOwner) {
    let Some(guest) = &envelope.origin.guest else { return };
    let container = &envelope.signal.target.container_id;
    // Only the first refusal is a warning: a guest could otherwise fill the log.
    if guest.counts.refused.one() == 0 {
        tracing::warn!(guest = guest.name, %container, because = %not_owner, "signal refused: the container does not belong to this guest; further ones are only counted");
    } else {
        tracing::debug!(guest = guest.name, %container, because = %not_owner, "signal refused");
    }
    envelope.ack.done();
}

/// The worker of this container.
pub(crate) fn shard(container: &ContainerId, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    container.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("less than the number of workers")
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use coroner_core::signal::{Moment, Other, Target};
    use coroner_sources::envelope::Ack;
    use coroner_sources::ownership::Registered;

    fn envelope(container: &str, seq: u64) -> Envelope {
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
        Envelope {
            signal,
            origin: Arc::new(origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::none(),
        }
    }

    #[tokio::test]
    async fn lookup_delays_only_its_container_in_order() {
        let folder = tempfile::tempdir().unwrap();
        // A containerd that accepts connections and never answers.
        let _silent = UnixListener::bind(folder.path().join("containerd.sock")).unwrap();
        let mut identities = Identities::new(Some(folder.path().join("containerd.sock")));
        let known = ContainerId::try_from("known".to_owned()).unwrap();
        identities.insert(LookupResult::unknown(known));
        let (envelopes, from_sources) = mpsc::channel(16);
        let (worker, mut tasks) = mpsc::channel(16);
        for (container, seq) in [("unknown", 1), ("known", 2), ("unknown", 3), ("known", 4)] {
            envelopes.send(envelope(container, seq)).await.unwrap();
        }
        drop(envelopes);
        let intake = Intake::new(
            from_sources,
            Ownership::new(Registered::default()),
            (identities, UnmanagedPods::of(&[])),
            vec![worker],
            IntakeRecovery::default(),
        );
        intake.run().await;
        let mut order = Vec::new();
        while let Some(WorkerTask::Rule(named)) = tasks.recv().await {
            order.push(named.envelope.signal.id);
        }
        assert_eq!(order, ["known:2", "known:4", "unknown:1", "unknown:3"]);
    }
}
