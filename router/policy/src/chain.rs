//! One worker's chain: rules on a signal with its case. A failing policy leaves the draft unchanged
//! (fail open).

use std::sync::Arc;
use std::time::Instant;

use super::call_clock::CallClock;
use super::chain_snapshot::ChainSnapshot;
use super::host::{Host, Instance};
use super::limits::CallBudget;
use super::on_failure::OnFailure;
use super::policy::Policy;
use super::quarantine::{Admission, Called};
use coroner_core::case::Case;
use coroner_core::legality::legal;
use coroner_core::mode::PolicyMode;
use coroner_core::native_default::default_ruling;
use coroner_core::ruling::{Action, FailureHandled, Fault, FaultKind, Opinion, Outcome, Ruling, Shadow};
use coroner_core::signal::Signal;

/// The policies of one worker, each with its own instance, in file-name order.
pub struct Chain {
    host: Arc<Host>,
    entries: Vec<ChainEntry>,
    /// Generation of the chain snapshot.
    pub generation: u64,
}

struct ChainEntry {
    policy: Arc<Policy>,
    /// `None` after a fault, and when the start failed.
    instance: Option<Instance>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// The draft after the policies called so far, and the opinion of each.
struct Draft {
    actions: Vec<Action>,
    opinions: Vec<Opinion>,
    /// wasm fuel left for the policies that follow. The draft of the shadow policies has its own:
    /// they change nothing that is enforced.
    fuel: u64,
}

impl Chain {
    /// A chain with the policies of the snapshot, started.
    pub fn new(host: Arc<Host>, snapshot: &ChainSnapshot) -> Self {
        let mut chain = Self { host, entries: Vec::new(), generation: 0 };
        chain.swap(snapshot);
        chain
    }

    /// Changes to another snapshot, between two signals. Policies in both keep their instances.
    pub fn swap(&mut self, snapshot: &ChainSnapshot) {
        let mut old = std::mem::take(&mut self.entries);
        for policy in &snapshot.policies {
            let same = old.iter().position(|entry| Arc::ptr_eq(&entry.policy, policy));
            let entry = match same {
                Some(at) => old.swap_remove(at),
                None => {
                    let mut entry = ChainEntry { policy: Arc::clone(policy), instance: None };
                    // A fault at the start is found and reported again at the first call.
                    entry.instance = entry.policy.start(&self.host).ok();
                    entry
                }
            };
            self.entries.push(entry);
        }
        self.generation = snapshot.generation;
    }

    /// Rules on a signal. Cannot fail: a failing policy leaves the draft unchanged, and a finished
    /// draft that breaks the contract becomes the native default (the fallback).
    pub fn rule(&mut self, signal: &Signal, case: &Case) -> Outcome {
        self.rule_on(default_ruling(signal, case).actions, signal, case)
    }

    /// Rules on a signal with another first draft than the native default: that of a recording.
    pub fn rule_on(&mut self, native: Vec<Action>, signal: &Signal, case: &Case) -> Outcome {
        let mut enforced = Draft {
            actions: native.clone(),
            opinions: Vec::with_capacity(self.entries.len()),
            fuel: self.host.settings().signal_fuel,
        };
        // The draft as if every shadow policy were enforced; set once a shadow policy was called.
        let mut would: Option<Draft> = None;
        let clock = CallClock::start(self.host.settings().signal);
        for entry in &mut self.entries {
            if !entry.policy.description.wants.include(&signal.event) {
                continue;
            }
            match entry.policy.mode {
                PolicyMode::Off => {}
                PolicyMode::Enforce => {
                    let diverged = would.as_ref().is_some_and(|would| would.actions != enforced.actions);
                    let before = enforced.fuel;
                    entry.rule(&self.host, clock, signal, case, &mut enforced);
                    match &mut would {
                        // Policies are pure: a second call with another draft has no side effect.
                        Some(would) if diverged => entry.rule(&self.host, clock, signal, case, would),
                        Some(would) => {
                            would.actions.clone_from(&enforced.actions);
                            would.fuel = would.fuel.saturating_sub(before - enforced.fuel);
                        }
                        None => {}
                    }
                }
                PolicyMode::Shadow => {
                    let would = would.get_or_insert_with(|| Draft {
                        actions: enforced.actions.clone(),
                        opinions: Vec::new(),
                        fuel: enforced.fuel,
                    });
                    entry.rule(&self.host, clock, signal, case, would);
                }
            }
        }
        let illegal = enforced.finish(signal, case, &native);
        let shadow = would.map(|mut would| {
            let illegal = would.finish(signal, case, &native);
            self.count_shadow(signal, &would.opinions, &enforced.actions, &would.actions);
            Shadow {
                differs: would.actions != enforced.actions,
                rulings: would.opinions,
                actions: would.actions,
                illegal,
            }
        });
        Outcome { draft: native, opinions: enforced.opinions, actions: enforced.actions, illegal, shadow }
    }

    /// Adds to the difference report of each shadow policy.
    fn count_shadow(&self, signal: &Signal, opinions: &[Opinion], enforced: &[Action], would: &[Action]) {
        for entry in self.entries.iter().filter(|entry| entry.policy.mode == PolicyMode::Shadow) {
            if let Some(opinion) = opinions.iter().find(|it| it.policy == entry.policy.name) {
                entry.policy.counts.shadow(signal, opinion, enforced, would);
            }
        }
    }
}

impl Draft {
    /// Replaces a finished draft that breaks the contract by the native default; returns the
    /// reason.
    fn finish(&mut self, signal: &Signal, case: &Case, native: &[Action]) -> Option<String> {
        let illegal = legal(signal, case, &self.actions).err();
        if illegal.is_some() {
            self.actions = native.to_vec();
        }
        illegal
    }
}

impl ChainEntry {
    /// Calls the policy with a draft and records its opinion.
    fn rule(&mut self, host: &Host, clock: CallClock, signal: &Signal, case: &Case, draft: &mut Draft) {
        let on_failure = self.policy.own.on_failure;
        let (mut answer, mut fuel) = self.admit_and_call(host, clock, signal, case, draft);
        let mut handled = None;
        match (&answer, on_failure) {
            (Err(fault), OnFailure::Hold) if was_called(fault.kind) && draft.fuel > 0 => {
                handled = Some(FailureHandled::Retried(fault.clone()));
                let (again, more) = self.admit_and_call(host, clock, signal, case, draft);
                (answer, fuel) = (again, fuel + more);
            }
            (Err(_), OnFailure::Fixed(fixed)) => {
                draft.actions = fixed.apply(&signal.event, &draft.actions);
                handled = Some(FailureHandled::Fixed(draft.actions.clone()));
            }
            (Ok(_), _) | (Err(_), OnFailure::Draft | OnFailure::Hold) => {}
        }
        if let Ok(Ruling::Decide(decision)) = &answer {
            draft.actions.clone_from(&decision.actions);
        }
        let opinion = self.opinion(answer, fuel, handled);
        self.policy.counts.opinion(signal, &opinion);
        draft.opinions.push(opinion);
    }

    /// One call, or why there is none. Its fuel is taken from the draft's.
    fn admit_and_call(
        &mut self,
        host: &Host,
        clock: CallClock,
        signal: &Signal,
        case: &Case,
        draft: &mut Draft,
    ) -> (Result<Ruling, Fault>, u64) {
        let allowed = CallBudget { fuel: draft.fuel, time: clock.left() };
        let (begun, clock) = (Instant::now(), CallClock::start(allowed.time));
        if allowed.fuel == 0 {
            return (Err(chain_fuel(host)), 0);
        }
        if allowed.time.is_zero() {
            let message =
                format!("not called: the chain's {:?} for this signal are over", host.settings().signal);
            return (Err(Fault { kind: FaultKind::ChainTime, message }), 0);
        }
        let admission = match (self.policy.breaker.admit(), self.policy.own.on_failure) {
            // The policy must not be skipped.
            (Admission::Quarantined, OnFailure::Hold) => Admission::Call,
            (Admission::Quarantined, OnFailure::Draft | OnFailure::Fixed(_)) => {
                let message = "not called: it is quarantined".to_owned();
                return (Err(Fault { kind: FaultKind::Quarantined, message }), 0);
            }
            (admission @ (Admission::Call | Admission::Trial), _) => admission,
        };
        let (mut answer, fuel) = self.call(host, allowed, signal, case, &draft.actions);
        draft.fuel = draft.fuel.saturating_sub(fuel);
        self.policy.counts.call(begun.elapsed());
        if let Err(fault) = &mut answer
            && fault.kind == FaultKind::Fuel
            && allowed.fuel < self.policy.own.limits.fuel
        {
            *fault = chain_fuel(host);
        }
        let fault = answer.as_ref().err().map(|fault| fault.kind);
        self.policy.breaker.called(Called { admission, fault, used: clock.used(), fuel });
        (answer, fuel)
    }

    fn call(
        &mut self,
        host: &Host,
        allowed: CallBudget,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let mut instance = match self.instance.take().map_or_else(|| self.policy.start(host), Ok) {
            Ok(instance) => instance,
            Err(fault) => return (Err(fault), 0),
        };
        let (answer, fuel) = instance.rule(host, allowed, signal, case, draft);
        // The instance is dropped after a refusal or an invalid answer too: its state may be
        // broken.
        if answer.is_ok() {
            self.instance = Some(instance);
        }
        (answer, fuel)
    }

    fn opinion(
        &self,
        answer: Result<Ruling, Fault>,
        fuel: u64,
        on_failure: Option<FailureHandled>,
    ) -> Opinion {
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
            on_failure,
        }
    }
}

/// Whether the policy itself failed: another call can end otherwise.
fn was_called(kind: FaultKind) -> bool {
    !matches!(kind, FaultKind::ChainTime | FaultKind::ChainFuel | FaultKind::Quarantined)
}

/// The policies before it used the chain's fuel for this signal.
fn chain_fuel(host: &Host) -> Fault {
    let message =
        format!("the chain's {} units of fuel for this signal are used up", host.settings().signal_fuel);
    Fault { kind: FaultKind::ChainFuel, message }
}
