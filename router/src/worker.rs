//! One OS thread that owns its containers' cases and its own instances of the policies, and rules on each signal.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::arrival::Ack;
use crate::audit::Ruled;
use crate::case::Case;
use crate::intake::{Named, Task};
use crate::policy::{Chain, Host, Lineups};
use crate::ruling::Outcome;
use crate::shares::Shares;
use crate::signal::{ContainerId, Event, Signal};

/// Cases kept of containers that have exited, for kills that are told late. Without a bound a node that runs short
/// jobs for a year would keep the case of every one.
const DEPARTED: usize = 1024;
/// Cases kept in all. A container whose exit is never told would else be kept for good. Past either bound the source that has most gives way: a guest
/// could otherwise make up names until the kills of another's containers are forgotten before their exits come.
const CASES: usize = 16_384;

/// A ruled signal on its way to delivery.
#[derive(Debug)]
pub struct Verdict {
    /// What the audit tells of it; where its actions go is not filled in yet.
    pub record: Ruled,
    /// What is known of its container after it.
    pub case: Case,
    /// How the source hears of it.
    pub ack: Ack,
}

impl Verdict {
    /// Whether it is the end of its container.
    pub fn ended(&self) -> bool {
        self.record.case.exit.is_none() && self.case.exit.is_some()
    }
}

/// A container that an earlier run of the router knew, its source, and its case.
pub type Known = (ContainerId, String, Case);

/// Rules on the signals of its containers.
#[derive(Debug)]
pub struct Worker {
    /// Its own policies.
    chain: Chain,
    lineups: Lineups,
    cases: HashMap<ContainerId, Case>,
    shares: Shares,
    departed: Shares,
}

impl Worker {
    /// A worker that knows these containers.
    pub fn new(host: Arc<Host>, lineups: Lineups, cases: Vec<Known>) -> Self {
        let chain = Chain::new(host, &lineups.now());
        let (mut shares, mut departed) = (Shares::new(CASES), Shares::new(DEPARTED));
        for (id, source, case) in &cases {
            // The journal keeps no more of them than this.
            shares.add(id, source);
            if case.exit.is_some() {
                departed.add(id, source);
            }
        }
        let cases = cases.into_iter().map(|(id, _, case)| (id, case)).collect();
        Self { chain, lineups, cases, shares, departed }
    }

    /// Rules until the channel closes. Blocks: it runs on its own thread.
    pub fn run(mut self, mut tasks: mpsc::Receiver<Task>, rulings: &mpsc::Sender<Verdict>) {
        while let Some(task) = tasks.blocking_recv() {
            // Between two signals: each is ruled by one generation.
            if let Some(lineup) = self.lineups.after(self.chain.generation) {
                self.chain.swap(&lineup);
            }
            let Task::Rule(named) = task else { continue };
            if self.has_ruled(&named.arrival.signal) {
                tracing::debug!(id = named.arrival.signal.id, "another source told this kill");
                named.arrival.ack.done();
                continue;
            }
            let verdict = self.rule(*named);
            if rulings.blocking_send(verdict).is_err() {
                return;
            }
        }
    }

    /// Whether this is a kill that was ruled on: an agent and a shim's source may read one counter. Once the container has ended it may have begun anew, with
    /// a counter that begins anew.
    fn has_ruled(&self, signal: &Signal) -> bool {
        match (&signal.event, self.cases.get(&signal.target.container_id)) {
            (Event::OomKill(kill), Some(case)) if case.exit.is_none() => {
                kill.total.is_some() && kill.total == case.kills_total()
            }
            _ => false,
        }
    }

    /// Rules on one signal and remembers it.
    pub fn rule(&mut self, named: Named) -> Verdict {
        let Named { arrival, known, memory_limit } = named;
        let mut signal = arrival.signal;
        let id = signal.target.container_id.clone();
        let source = &arrival.origin.source;
        if !self.cases.contains_key(&id)
            && let Some(gone) = self.shares.add(&id, source)
        {
            self.cases.remove(&gone);
            self.departed.remove(&gone);
        }
        let case = self.cases.entry(id.clone()).or_default();
        if case.exit.is_some() && matches!(&signal.event, Event::Forwarded(event) if event.is_creation()) {
            // It runs once more, under the id it had.
            *case = Case::default();
            self.departed.remove(&id);
        }
        case.know(&known);
        case.memory_limit = case.memory_limit.or(memory_limit);
        case.memory_last = arrival.usage_bytes.or(case.memory_last);
        case.describe(&arrival.attributes);
        relate(&mut signal, case);
        let outcome = match &signal.event {
            // Published as it came: there is nothing to rule.
            Event::Forwarded(_) => Outcome::default(),
            _ => self.chain.rule(&signal, case),
        };
        let before = case.clone();
        case.learn(&signal, &outcome.actions);
        let after = case.clone();
        if before.exit.is_none()
            && case.exit.is_some()
            && let Some(gone) = self.departed.add(&id, source)
        {
            self.cases.remove(&gone);
            self.shares.remove(&gone);
        }
        let record = Ruled {
            source: arrival.origin.source.clone(),
            mode: arrival.origin.mode,
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
        Verdict { record, case: after, ack: arrival.ack }
    }
}

/// Fills in what only the case tells: how far the counter rose since the last ruling, and whether the kill is late.
fn relate(signal: &mut Signal, case: &Case) {
    if let Event::OomKill(kill) = &mut signal.event {
        if let (Some(total), Some(before)) = (kill.total, case.kills_total())
            && total > before
        {
            kill.added = Some(total - before);
        }
        kill.late = case.exit.is_some();
    }
}
