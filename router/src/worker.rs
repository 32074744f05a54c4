//! A worker: one OS thread that owns the cases of its containers and its instances of the policies,
//! and rules on each signal.
//! The field's name: sharding, partitioning.

mod repeats;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use self::repeats::{adds, counts, is_counted, is_one_life, is_step, repeat};
use crate::intake::{NamedSignal, WorkerTask};
use coroner_core::audit::Ruled;
use coroner_core::case::Case;
use coroner_core::cause;
use coroner_core::fair_map::FairMap;
use coroner_core::mode::Known;
use coroner_core::ruling::Outcome;
use coroner_core::signal::{ContainerId, Event, Exited, KILLS_UNKNOWN, SAME_KILL, Signal};
use coroner_policy::{ActiveChain, Chain, Host};
use coroner_sources::envelope::{Ack, Envelope};

/// Cases kept of containers that have exited, for late kills. Without a bound a node that runs
/// short jobs for a year would keep the case of each one.
const DEPARTED: usize = 1024;
/// Cases kept in all. Without a bound the case of a container would stay for good if its exit is
/// never reported. Eviction is fair: a guest could otherwise make up names until the kills of
/// another's containers are forgotten before their exits come.
const CASES: usize = 16_384;

/// A ruled signal, for delivery.
#[derive(Debug)]
pub struct RuledSignal {
    /// The audit record, without its deliveries.
    pub record: Ruled,
    /// The container's case after the ruling.
    pub case: Case,
    /// Acknowledges the signal.
    pub ack: Ack,
}

impl RuledSignal {
    /// Whether the signal ended its container.
    pub fn ended(&self) -> bool {
        self.record.case.exit.is_none() && self.case.exit.is_some()
    }
}

/// What a worker has done with a signal.
#[derive(Debug)]
pub enum WorkerOutput {
    /// It was ruled.
    Ruled(Box<RuledSignal>),
    /// It is a duplicate, and is not ruled again.
    Skipped {
        /// The signal's container.
        container: ContainerId,
        /// The signal's id.
        id: String,
    },
}

/// A container's id, source and case, recovered from the journal.
pub type RecoveredCase = (ContainerId, String, Case);

/// Rules on the signals of its containers.
#[derive(Debug)]
pub struct Worker {
    /// The worker's own instances.
    chain: Chain,
    active_chain: ActiveChain,
    cases: HashMap<ContainerId, Case>,
    /// Containers with a case from the journal that has had no kill since: a crash may have lost
    /// the ruling of its last one.
    recovered: HashSet<ContainerId>,
    by_owner: FairMap,
    departed: FairMap,
}

impl Worker {
    /// A worker that starts with the recovered cases.
    pub fn new(host: Arc<Host>, active_chain: ActiveChain, cases: Vec<RecoveredCase>) -> Self {
        let chain = Chain::new(host, &active_chain.now());
        let (mut by_owner, mut departed) = (FairMap::new(CASES), FairMap::new(DEPARTED));
        for (id, source, case) in &cases {
            // The journal keeps no more of them than this.
            by_owner.add(id, source);
            if case.exit.is_some() {
                departed.add(id, source);
            }
        }
        let cases: HashMap<_, _> = cases.into_iter().map(|(id, _, case)| (id, case)).collect();
        let recovered = cases.keys().cloned().collect();
        Self { chain, active_chain, cases, recovered, by_owner, departed }
    }

    /// Rules until the channel closes. Blocks: it runs on its own thread.
    pub fn run(mut self, mut tasks: mpsc::Receiver<WorkerTask>, outputs: &mpsc::Sender<WorkerOutput>) {
        while let Some(task) = tasks.blocking_recv() {
            if let Some(output) = self.step(task)
                && outputs.blocking_send(output).is_err()
            {
                return;
            }
        }
    }

    /// Handles one message. `None`: it is not about a signal.
    pub(crate) fn step(&mut self, task: WorkerTask) -> Option<WorkerOutput> {
        // Between two signals: each signal is ruled by one generation.
        if let Some(snapshot) = self.active_chain.after(self.chain.generation) {
            self.chain.swap(&snapshot);
        }
        let WorkerTask::Rule(named) = task else { return None };
        let signal = &named.envelope.signal;
        if self.has_ruled(signal) {
            tracing::debug!(id = signal.id, "duplicate kill skipped: another source reported it");
            let Envelope { signal, ack, .. } = named.envelope;
            ack.done();
            return Some(WorkerOutput::Skipped { container: signal.target.container_id, id: signal.id });
        }
        Some(WorkerOutput::Ruled(Box::new(self.rule(*named))))
    }

    /// Deduplicates kills: an agent and a shim's source may read the same counter. Not after the
    /// end of a container that may have been restarted: that begins a new counter. Nor after a
    /// crash that lost the ruling.
    fn has_ruled(&self, signal: &Signal) -> bool {
        match (&signal.event, self.cases.get(&signal.target.container_id)) {
            (Event::OomKill(kill), Some(case)) if is_one_life(case, signal) => {
                !adds(kill, case) && is_counted(kill, case) && !counts(&self.recovered, case, signal)
            }
            _ => false,
        }
    }

    /// Rules on one signal and updates its case.
    pub fn rule(&mut self, named: NamedSignal) -> RuledSignal {
        let NamedSignal { envelope, known, memory_limit, seen_exit } = named;
        let mut signal = envelope.signal;
        let id = signal.target.container_id.clone();
        let source = &envelope.origin.source;
        if !self.cases.contains_key(&id)
            && let Some(gone) = self.by_owner.add(&id, source)
        {
            self.cases.remove(&gone);
            self.departed.remove(&gone);
        }
        let case = self.cases.entry(id.clone()).or_default();
        if case.exit.is_some() && matches!(&signal.event, Event::Forwarded(event) if event.is_creation()) {
            // The container runs again, under the same id.
            *case = Case::default();
            self.departed.remove(&id);
        }
        let uncounted = signal.attributes.iter().any(|(key, _)| key == KILLS_UNKNOWN);
        let is_exit = matches!(signal.event, Event::Exited(_));
        if is_exit && !uncounted && known.contains(&Known::KillCount) {
            // The counter was read at this exit, whatever an earlier run's was.
            case.known.push(Known::KillCount);
        }
        case.set_known(&known);
        if let Some(limit) = memory_limit.filter(|_| case.memory_limit.is_none()) {
            case.learn_limit(signal.at, limit);
        }
        case.memory_last = envelope.usage_bytes.or(case.memory_last);
        case.describe(&envelope.attributes);
        if is_exit && uncounted {
            case.forget_kill_count();
        }
        relate(&mut signal, seen_exit.as_deref(), case);
        // A recording has the attribute as it was ruled then.
        signal.attributes.retain(|(key, _)| key != SAME_KILL);
        let is_step = is_step(&self.recovered, case, &signal);
        if is_step {
            signal.attributes.push((SAME_KILL.to_owned(), "true".to_owned()));
            repeat(&mut signal, case);
        }
        let outcome = match &signal.event {
            // Forwarded unchanged: there is nothing to rule on.
            Event::Forwarded(_) => Outcome::default(),
            // One kill is ruled once.
            Event::OomKill(_) if is_step => Outcome::default(),
            _ => self.chain.rule(&signal, case),
        };
        let before = case.clone();
        let counted = counts(&self.recovered, case, &signal).then_some(case.kills);
        match is_step {
            true => case.add_step(&signal),
            false => case.update(&signal, &outcome.actions),
        }
        case.kills = counted.unwrap_or(case.kills);
        if matches!(signal.event, Event::OomKill(_)) {
            self.recovered.remove(&id);
        }
        let after = case.clone();
        if before.exit.is_none()
            && case.exit.is_some()
            && let Some(gone) = self.departed.add(&id, source)
        {
            self.cases.remove(&gone);
            self.by_owner.remove(&gone);
        }
        let record = Ruled {
            source: envelope.origin.source.clone(),
            mode: envelope.origin.mode,
            generation: self.chain.generation,
            signal,
            case: before,
            draft: outcome.draft,
            rulings: outcome.opinions,
            actions: outcome.actions,
            shadow: outcome.shadow,
            illegal: outcome.illegal,
            delivery: Vec::new(),
        };
        RuledSignal { record, case: after, ack: envelope.ack }
    }
}

/// Adds what only the case knows: the counter's increase since the last ruling, whether the kill
/// is late, and what ended the container.
fn relate(signal: &mut Signal, seen_exit: Option<&Exited>, case: &Case) {
    if let Some(exited) = signal.exit_of_init_mut() {
        cause::complete(exited, seen_exit, case);
    }
    if let Event::OomKill(kill) = &mut signal.event {
        if let (Some(total), Some(before)) = (kill.total, case.kills_total())
            && total > before
        {
            kill.added = Some(total - before);
        }
        kill.late = case.exit.is_some();
    }
}

#[cfg(test)]
mod tests;
