//! The manager's answers to requests, and its audit record.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PolicyManager;
use super::compile_pool::COMPILING;
use crate::counts::unix_ms;
use crate::policy::Policy;
use crate::promote;
use crate::report::{Inspection, Listing, Promoted, Released, Reloaded};
use coroner_core::audit::{self, ChainLink, Refused};
use coroner_core::mode::Known;

impl PolicyManager {
    /// Per source, the needs of the policy that the source cannot fulfil.
    pub(super) fn unmet(&self, policy: &Policy) -> BTreeMap<String, Vec<String>> {
        let unmet = |known: &[Known]| {
            let needs = policy.needs().into_iter().filter(|need| !known.contains(need));
            needs.map(|need| need.name().to_owned()).collect::<Vec<_>>()
        };
        let sources = self.sources.iter().map(|(source, known)| (source.clone(), unmet(known)));
        sources.filter(|(_, unmet)| !unmet.is_empty()).collect()
    }

    pub(super) fn record(&self) -> audit::ChainRecord {
        let snapshot = self.active_chain.now();
        let link = |policy: &Arc<Policy>| ChainLink {
            policy: policy.name.clone(),
            version: policy.version().to_owned(),
            digest: policy.digest.clone(),
            mode: policy.mode,
        };
        audit::ChainRecord {
            at_ms: unix_ms(),
            generation: snapshot.generation,
            policies: snapshot.policies.iter().map(link).collect(),
            refused: self.final_refused(),
        }
    }

    /// The refused policies without those being compiled.
    pub(super) fn final_refused(&self) -> Vec<Refused> {
        self.refused.iter().filter(|it| it.reason != COMPILING).cloned().collect()
    }

    pub(super) fn answer_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let reloaded = Reloaded {
                listing: self.listing(),
                changed: self.generation() != waiting.generation,
                took_ms: u64::try_from(waiting.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            // The requester may be gone.
            drop(waiting.answer.send(reloaded));
        }
    }

    pub(super) fn listing(&self) -> Listing {
        let snapshot = self.active_chain.now();
        Listing {
            generation: snapshot.generation,
            problem: self.problem.clone(),
            chain: snapshot.policies.iter().map(|policy| policy.status(self.unmet(policy))).collect(),
            refused: self.refused.clone(),
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Policy>> {
        self.active_chain.now().policies.iter().find(|policy| policy.name == name).cloned()
    }

    pub(super) fn inspect(&self, name: &str) -> Option<Inspection> {
        let policy = self.find(name)?;
        Some(policy.inspection(self.unmet(&policy)))
    }

    pub(super) fn release(&self, name: &str) -> Option<Released> {
        let policy = self.find(name)?;
        let released = policy.breaker.release();
        if released {
            tracing::info!(policy = policy.name, "quarantine lifted by request");
        }
        Some(Released { released, policy: policy.name.clone(), digest: policy.digest.clone() })
    }

    pub(super) fn promote(&self, name: &str, force: bool) -> Option<Promoted> {
        let policy = self.find(name)?;
        Some(promote::promote(self.host.settings(), &policy, force))
    }
}
