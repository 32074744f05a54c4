//! One worker's chain: a signal and its case in, what is to be done out, whatever the policies do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bindings;
use super::health::{Admission, Called};
use super::host::{Host, Instance};
use super::lineup::Lineup;
use super::load::Policy;
use crate::case::Case;
use crate::config::PolicyMode;
use crate::ruling::{Action, Fault, FaultKind, Opinion, Outcome, Ruling, Shadow, default_ruling, legal};
use crate::signal::Signal;

/// The policies of one worker, each with its own instance, in file-name order.
pub struct Chain {
    host: Arc<Host>,
    links: Vec<Link>,
    /// Of the lineup.
    pub generation: u64,
}

struct Link {
    policy: Arc<Policy>,
    /// `None` after a fault, and where it could not be started.
    instance: Option<Instance>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// A draft on its way through the chain, and who said what about it.
struct Draft {
    actions: Vec<Action>,
    opinions: Vec<Opinion>,
}

impl Chain {
    /// A chain of `lineup`, its policies started.
    pub fn new(host: Arc<Host>, lineup: &Lineup) -> Self {
        let mut chain = Self { host, links: Vec::new(), generation: 0 };
        chain.swap(lineup);
        chain
    }

    /// Goes over to another lineup, between two signals. Policies that are in both keep their instances.
    pub fn swap(&mut self, lineup: &Lineup) {
        let mut old = std::mem::take(&mut self.links);
        for policy in &lineup.policies {
            let same = old.iter().position(|link| Arc::ptr_eq(&link.policy, policy));
            let link = match same {
                Some(at) => old.swap_remove(at),
                None => {
                    let mut link = Link { policy: Arc::clone(policy), instance: None };
                    // A fault is found again, and told, at the first call.
                    link.instance = link.policy.start(&self.host).ok();
                    link
                }
            };
            self.links.push(link);
        }
        self.generation = lineup.generation;
    }

    /// Rules on a signal. Cannot fail: a policy that does leaves the draft as it was, and a finished
    /// draft that breaks the contract becomes the native default.
    pub fn rule(&mut self, signal: &Signal, case: &Case) -> Outcome {
        let native = default_ruling(signal, case).actions;
        let mut enforced = Draft { actions: native.clone(), opinions: Vec::with_capacity(self.links.len()) };
        // As it would be with every shadow policy enforced; there once one was asked.
        let mut would: Option<Draft> = None;
        let until = Instant::now() + self.host.settings().signal;
        for link in &mut self.links {
            if !bindings::wanted(link.policy.description.wants, &signal.event) {
                continue;
            }
            match link.policy.mode {
                PolicyMode::Off => {}
                PolicyMode::Enforce => {
                    let parted = would.as_ref().is_some_and(|would| would.actions != enforced.actions);
                    link.rule(&self.host, until, signal, case, &mut enforced);
                    match &mut would {
                        // Policies are pure: asking once more about another draft changes nothing.
                        Some(would) if parted => link.rule(&self.host, until, signal, case, would),
                        Some(would) => would.actions.clone_from(&enforced.actions),
                        None => {}
                    }
                }
                PolicyMode::Shadow => {
                    let would = would.get_or_insert_with(|| Draft {
                        actions: enforced.actions.clone(),
                        opinions: Vec::new(),
                    });
                    link.rule(&self.host, until, signal, case, would);
                }
            }
        }
        let illegal = enforced.finish(signal, case, &native);
        let shadow = would.map(|mut would| {
            let illegal = would.finish(signal, case, &native);
            self.tell(signal, &would.opinions, &enforced.actions, &would.actions);
            Shadow {
                differs: would.actions != enforced.actions,
                rulings: would.opinions,
                actions: would.actions,
                illegal,
            }
        });
        Outcome { draft: native, opinions: enforced.opinions, actions: enforced.actions, illegal, shadow }
    }

    /// Each shadow policy's part, for its difference report.
    fn tell(&self, signal: &Signal, opinions: &[Opinion], enforced: &[Action], would: &[Action]) {
        for link in self.links.iter().filter(|link| link.policy.mode == PolicyMode::Shadow) {
            if let Some(opinion) = opinions.iter().find(|it| it.policy == link.policy.name) {
                link.policy.counts.shadow(signal, opinion, enforced, would);
            }
        }
    }
}

impl Draft {
    /// A finished draft that breaks the contract becomes the native default; why it did.
    fn finish(&mut self, signal: &Signal, case: &Case, native: &[Action]) -> Option<String> {
        let illegal = legal(signal, case, &self.actions).err();
        if illegal.is_some() {
            self.actions = native.to_vec();
        }
        illegal
    }
}

impl Link {
    /// Asks the policy about a draft, and puts down what it said.
    fn rule(&mut self, host: &Host, until: Instant, signal: &Signal, case: &Case, draft: &mut Draft) {
        let (answer, fuel) = self.ask(host, until, signal, case, &draft.actions);
        if let Ok(Ruling::Decide(decision)) = &answer {
            draft.actions.clone_from(&decision.actions);
        }
        let opinion = self.opinion(answer, fuel);
        self.policy.counts.opinion(signal, &opinion);
        draft.opinions.push(opinion);
    }

    fn ask(
        &mut self,
        host: &Host,
        until: Instant,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let begun = Instant::now();
        let left = until.saturating_duration_since(begun);
        if left.is_zero() {
            let message =
                format!("not called: the chain's {:?} for this signal are over", host.settings().signal);
            return (Err(Fault { kind: FaultKind::ChainTime, message }), 0);
        }
        let admission = self.policy.health.admit();
        if admission == Admission::Quarantined {
            let message = "not called: it is quarantined".to_owned();
            return (Err(Fault { kind: FaultKind::Quarantined, message }), 0);
        }
        let (answer, fuel) = self.call(host, left, signal, case, draft);
        let took = begun.elapsed();
        self.policy.counts.call(took);
        let fault = answer.as_ref().err().map(|fault| fault.kind);
        let limit = self.policy.own.limits.call;
        self.policy.health.called(Called { admission, fault, took, limit, fuel });
        (answer, fuel)
    }

    fn call(
        &mut self,
        host: &Host,
        left: Duration,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let mut instance = match self.instance.take().map_or_else(|| self.policy.start(host), Ok) {
            Ok(instance) => instance,
            Err(fault) => return (Err(fault), 0),
        };
        let (answer, fuel) = instance.rule(host, left, signal, case, draft);
        // A refusal and a broken answer come from a policy that still runs, but it may have broken its own state.
        if answer.is_ok() {
            self.instance = Some(instance);
        }
        (answer, fuel)
    }

    fn opinion(&self, answer: Result<Ruling, Fault>, fuel: u64) -> Opinion {
        let (ruling, fault) = match answer {
            Ok(ruling) => (Some(ruling), None),
            Err(fault) => (None, Some(fault)),
        };
        Opinion {
            policy: self.policy.name.clone(),
            version: self.policy.version().to_owned(),
            digest: self.policy.digest.clone(),
            ruling,
            fuel,
            fault,
        }
    }
}
