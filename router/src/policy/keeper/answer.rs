//! What the keeper tells whoever asks, and the audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Keeper;
use super::compiling::COMPILING;
use crate::audit::{self, ChainLink, Refused};
use crate::case::Known;
use crate::policy::counts::unix_ms;
use crate::policy::load::Policy;
use crate::policy::promote;
use crate::policy::report::{Inspection, Listing, Promoted, Released, Reloaded};

impl Keeper {
    /// Per source what a policy needs and cannot be known there.
    pub(super) fn unmet(&self, policy: &Policy) -> BTreeMap<String, Vec<String>> {
        let unmet = |known: &[Known]| {
            let needs = policy.needs().into_iter().filter(|need| !known.contains(need));
            needs.map(|need| need.name().to_owned()).collect::<Vec<_>>()
        };
        let sources = self.sources.iter().map(|(source, known)| (source.clone(), unmet(known)));
        sources.filter(|(_, unmet)| !unmet.is_empty()).collect()
    }

    pub(super) fn record(&self) -> audit::Chain {
        let lineup = self.lineups.now();
        let link = |policy: &Arc<Policy>| ChainLink {
            policy: policy.name.clone(),
            version: policy.version().to_owned(),
            digest: policy.digest.clone(),
            mode: policy.mode,
        };
        audit::Chain {
            at_ms: unix_ms(),
            generation: lineup.generation,
            policies: lineup.policies.iter().map(link).collect(),
            refused: self.told_refused(),
        }
    }

    /// What was refused; what is being compiled is not.
    pub(super) fn told_refused(&self) -> Vec<Refused> {
        self.refused.iter().filter(|it| it.reason != COMPILING).cloned().collect()
    }

    pub(super) fn answer_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let reloaded = Reloaded {
                listing: self.listing(),
                changed: self.generation() != waiting.generation,
                took_ms: u64::try_from(waiting.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            // Whoever asked may be gone.
            drop(waiting.answer.send(reloaded));
        }
    }

    pub(super) fn listing(&self) -> Listing {
        let lineup = self.lineups.now();
        Listing {
            generation: lineup.generation,
            problem: self.problem.clone(),
            chain: lineup.policies.iter().map(|policy| policy.status(self.unmet(policy))).collect(),
            refused: self.refused.clone(),
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Policy>> {
        self.lineups.now().policies.iter().find(|policy| policy.name == name).cloned()
    }

    pub(super) fn inspect(&self, name: &str) -> Option<Inspection> {
        let policy = self.find(name)?;
        Some(policy.inspection(self.unmet(&policy)))
    }

    pub(super) fn release(&self, name: &str) -> Option<Released> {
        let policy = self.find(name)?;
        let released = policy.health.release();
        if released {
            tracing::info!(policy = policy.name, "quarantine ended by hand");
        }
        Some(Released { released, policy: policy.name.clone(), digest: policy.digest.clone() })
    }

    pub(super) fn promote(&self, name: &str, force: bool) -> Option<Promoted> {
        let policy = self.find(name)?;
        Some(promote::promote(self.host.settings(), &policy, force))
    }
}
