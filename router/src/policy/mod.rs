//! The policy chain: a signal and its case in, what is to be done out, whatever the policies do.

mod bindings;
mod host;
mod limits;
mod load;

use std::sync::Arc;

pub use host::Host;
pub use limits::Limits;
pub use load::{BUILT_IN, LoadError, Policy, load, prepare};

use crate::case::Case;
use crate::ruling::{Action, Fault, Opinion, Outcome, Ruling, default_ruling, legal};
use crate::signal::Signal;
use host::Instance;

/// The policies of one worker, each with its own instance, in file-name order.
pub struct Chain {
    host: Arc<Host>,
    links: Vec<Link>,
    /// Counts the chains of this router's life, from 1.
    pub generation: u64,
}

struct Link {
    policy: Arc<Policy>,
    /// `None` before the first call and after a fault.
    instance: Option<Instance>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Chain {
    /// A chain of `policies`, none of them started yet.
    pub fn new(host: Arc<Host>, policies: &[Arc<Policy>], generation: u64) -> Self {
        let links =
            policies.iter().map(|policy| Link { policy: Arc::clone(policy), instance: None }).collect();
        Self { host, links, generation }
    }

    /// Rules on a signal. Cannot fail: a policy that does leaves the draft as it was, and a finished
    /// draft that breaks the contract becomes the native default.
    pub fn rule(&mut self, signal: &Signal, case: &Case) -> Outcome {
        let native = default_ruling(signal, case).actions;
        let mut actions = native.clone();
        let mut opinions = Vec::with_capacity(self.links.len());
        for link in &mut self.links {
            if !bindings::wanted(link.policy.description.wants, &signal.event) {
                continue;
            }
            let (answer, fuel) = link.rule(&self.host, signal, case, &actions);
            if let Ok(Ruling::Decide(decision)) = &answer {
                actions.clone_from(&decision.actions);
            }
            opinions.push(link.opinion(answer, fuel));
        }
        let illegal = legal(signal, case, &actions).err();
        if illegal.is_some() {
            actions.clone_from(&native);
        }
        Outcome { draft: native, opinions, actions, illegal }
    }
}

impl Link {
    fn rule(
        &mut self,
        host: &Host,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let mut instance = match self.instance.take().map_or_else(|| self.policy.start(host), Ok) {
            Ok(instance) => instance,
            Err(fault) => return (Err(fault), 0),
        };
        let (answer, fuel) = instance.rule(signal, case, draft);
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
