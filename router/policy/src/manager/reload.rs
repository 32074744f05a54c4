//! A reload: loads new policies beside the running ones, then swaps the chain as a whole or keeps
//! it.
//! The field's name: last known good.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::PolicyManager;
use super::compile_pool::COMPILING;
use crate::chain_snapshot::ChainSnapshot;
use crate::counts::PolicyCounts;
use crate::directory::{self, DirectoryListing, FoundPolicy};
use crate::load::prepare;
use crate::load_error::LoadError;
use crate::policy::Policy;
use crate::policy_config::PolicyConfig;
use crate::quarantine::CircuitBreaker;
use crate::settings::Settings;
use coroner_core::audit::Refused;
use coroner_core::mode::PolicyMode;

/// Circuit breakers and counters kept of removed components, so that a component that returns is
/// recognized.
const REMEMBERED: usize = 256;

/// What a policy was made from: the same key is the same policy.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    digest: String,
    /// Hash of the files beside it: vectors may be a megabyte.
    beside: u64,
}

impl Key {
    fn new(name: &str, digest: &str, own: &PolicyConfig, vectors: Option<&str>) -> Self {
        let mut beside = DefaultHasher::new();
        format!("{own:?}").hash(&mut beside);
        vectors.hash(&mut beside);
        Self { name: name.to_owned(), digest: digest.to_owned(), beside: beside.finish() }
    }
}

impl PolicyManager {
    /// Reads the directory, and swaps if the chain differs.
    pub(super) fn reload(&mut self) {
        self.last_reload = Instant::now();
        let before = self.active_chain.now();
        let seen = match directory::read(self.host.settings()) {
            Ok(seen) => {
                self.problem = None;
                seen
            }
            Err(error) => return self.directory_unreadable(&error),
        };
        let mut refused: Vec<Refused> = seen.strays.iter().map(|stray| refusal(stray, None)).collect();
        let (mut policies, mut names) = (Vec::new(), HashSet::new());
        for (name, found) in seen.policies {
            let good = before.policies.iter().find(|it| it.name == name);
            match found.map_err(|error| refusal(&error, None)).and_then(|found| self.found(&found, good)) {
                Ok(Some(policy)) => policies.push(policy),
                // One that is switched off is not kept: it must not run again if its file breaks.
                Ok(None) => continue,
                Err(mut error) => {
                    let good = good.cloned().or_else(|| self.last_good(&name, &error));
                    error.kept = good.as_ref().map(|good| good.digest.clone());
                    policies.extend(good);
                    refused.push(error);
                }
            }
            names.insert(name);
        }
        self.last_good.retain(&names);
        self.compiling.ready.clear();
        self.refuse(refused, seen.strays.len());
        self.active_chain.reading().record(&self.final_refused(), false);
        self.swap(&before, policies);
    }

    /// The directory cannot be read: the running chain is kept.
    fn directory_unreadable(&mut self, error: &LoadError) {
        let problem = error.to_string();
        if self.problem.as_ref() != Some(&problem) {
            tracing::error!(problem, "cannot read the policy directory; the last good chain keeps running");
        }
        self.problem = Some(problem);
        let before = self.active_chain.now();
        let kept = before.policies.iter().map(|it| it.digest.as_str()).collect::<Vec<_>>().join(" ");
        self.refused = vec![refusal(error, (!kept.is_empty()).then_some(kept))];
        self.active_chain.reading().record(&[], true);
        if before.generation == 0 {
            // At the start there is no last good chain: the built-in default rules.
            let built_in_only = Settings { directory: None, ..self.host.settings().clone() };
            let seen = directory::read(&built_in_only).unwrap_or_else(|_| DirectoryListing::default());
            let found = seen.policies.into_values().filter_map(Result::ok);
            let policies = found.filter_map(|found| self.policy(&found, None).ok().flatten()).collect();
            self.swap(&before, policies);
        }
    }

    /// The policy of these files; a new one is kept for a restart.
    fn found(
        &mut self,
        found: &FoundPolicy,
        good: Option<&Arc<Policy>>,
    ) -> Result<Option<Arc<Policy>>, Refused> {
        let policy = self.policy(found, good)?;
        let runs = |new: &Arc<Policy>| good.is_some_and(|old| Arc::ptr_eq(old, new));
        if policy.as_ref().is_some_and(|new| !runs(new)) {
            self.last_good.keep(found);
        }
        Ok(policy)
    }

    /// The last good version of a policy that was refused and does not run: after a restart.
    fn last_good(&mut self, name: &str, refused: &Refused) -> Option<Arc<Policy>> {
        if refused.reason == COMPILING {
            return None;
        }
        let found = self.last_good.get(name, self.host.settings())?;
        match self.policy(&found, None) {
            Ok(policy) => policy,
            Err(again) if again.reason == COMPILING => None,
            Err(again) => {
                tracing::warn!(policy = name, reason = again.reason, "the last good version is refused too");
                None
            }
        }
    }

    /// The policy of these files: the running one if they are unchanged, else a new one. `None`: it
    /// is switched off.
    fn policy(
        &mut self,
        found: &FoundPolicy,
        good: Option<&Arc<Policy>>,
    ) -> Result<Option<Arc<Policy>>, Refused> {
        if found.own.mode == PolicyMode::Off {
            return Ok(None);
        }
        let same = |good: &&Arc<Policy>| {
            good.digest.strip_prefix("sha256:") == Some(&found.bytes.digest)
                && good.own == found.own
                && good.vectors == found.vectors
        };
        if let Some(good) = good.filter(same) {
            return Ok(Some(Arc::clone(good)));
        }
        let key = Key::new(&found.name, &found.bytes.digest, &found.own, found.vectors.as_deref());
        if let Some(reason) = self.failed.get(&key) {
            return Err(Refused { subject: found.name.clone(), reason: reason.clone(), kept: None });
        }
        match self.load(found) {
            Ok(Some(policy)) => Ok(Some(Arc::new(policy))),
            Ok(None) => {
                Err(Refused { subject: found.name.clone(), reason: COMPILING.to_owned(), kept: None })
            }
            Err(error) => {
                let refused = refusal(&error, None);
                if error.is_final() {
                    if self.failed.len() >= REMEMBERED {
                        self.failed.clear();
                    }
                    self.failed.insert(key, refused.reason.clone());
                }
                Err(refused)
            }
        }
    }

    /// `None`: it is being compiled.
    fn load(&mut self, found: &FoundPolicy) -> Result<Option<Policy>, LoadError> {
        let compile = |reason| LoadError::Compile { policy: found.name.clone(), reason };
        let digest = &found.bytes.digest;
        let component = match self.cache.get(&self.host, digest) {
            Some(component) => component,
            None => match self.compiling.ready.remove(digest) {
                Some(outcome) => outcome.map_err(compile)?,
                None if self.compiling.done.is_some() => {
                    self.compiling
                        .begin(&self.host, &self.cache, &found.bytes)
                        .map_err(|source| LoadError::Read { file: found.name.clone(), source })?;
                    return Ok(None);
                }
                None => self.cache.compile(&self.host, &found.bytes).map_err(compile)?,
            },
        };
        let (breaker, counts) = (self.breaker(found), self.counts(found));
        prepare(&self.host, found, &component, breaker, counts).map(Some)
    }

    fn breaker(&mut self, found: &FoundPolicy) -> Arc<CircuitBreaker> {
        if self.breakers.len() > REMEMBERED {
            self.breakers.retain(|_, breakers| Arc::strong_count(breakers) > 1);
        }
        let limits = self.host.settings().quarantine;
        let new = || Arc::new(CircuitBreaker::new(found.name.clone(), limits));
        Arc::clone(self.breakers.entry(found.bytes.digest.clone()).or_insert_with(new))
    }

    fn counts(&mut self, found: &FoundPolicy) -> Arc<PolicyCounts> {
        if self.counts.len() > REMEMBERED {
            self.counts.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        Arc::clone(self.counts.entry((found.name.clone(), found.bytes.digest.clone())).or_default())
    }

    /// Keeps the list of refused files, strays first, and logs new entries.
    fn refuse(&mut self, refused: Vec<Refused>, strays: usize) {
        let entries = refused.iter().enumerate();
        for (at, new) in entries.filter(|(_, it)| it.reason != COMPILING && !self.refused.contains(it)) {
            if at < strays {
                // Often the configuration of a policy that is about to follow.
                tracing::warn!(
                    subject = new.subject,
                    reason = new.reason,
                    "file skipped: it does not belong to a policy"
                );
                continue;
            }
            let kept = new.kept.as_deref().unwrap_or("none");
            tracing::error!(
                subject = new.subject,
                reason = new.reason,
                kept,
                "policy refused; the other policies keep running"
            );
        }
        self.refused = refused;
    }

    fn swap(&mut self, before: &ChainSnapshot, policies: Vec<Arc<Policy>>) {
        let same = before.policies.len() == policies.len()
            && before.policies.iter().zip(&policies).all(|(old, new)| Arc::ptr_eq(old, new));
        if same && before.generation > 0 {
            return;
        }
        let generation = before.generation + 1;
        for policy in policies.iter().filter(|it| !before.policies.iter().any(|old| Arc::ptr_eq(old, it))) {
            let (version, mode) = (policy.version(), policy.mode.name());
            tracing::info!(
                generation,
                policy = policy.name,
                version,
                digest = policy.digest,
                mode,
                "policy loaded"
            );
        }
        for gone in before.policies.iter().filter(|it| !policies.iter().any(|new| new.name == it.name)) {
            tracing::info!(generation, policy = gone.name, digest = gone.digest, "policy removed");
        }
        self.active_chain.store(ChainSnapshot { generation, policies });
    }
}

fn refusal(error: &LoadError, kept: Option<String>) -> Refused {
    Refused { subject: error.subject(), reason: error.to_string(), kept }
}
