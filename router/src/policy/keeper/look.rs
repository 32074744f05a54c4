//! One look at the directory: what is new is loaded beside what runs, and the chain is swapped whole or stays.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::Keeper;
use super::compiling::COMPILING;
use crate::audit::Refused;
use crate::config::PolicyMode;
use crate::policy::counts::Counts;
use crate::policy::directory::{self, Found, Seen};
use crate::policy::health::Health;
use crate::policy::lineup::Lineup;
use crate::policy::load::{LoadError, Policy, prepare};
use crate::policy::own_file::OwnFile;
use crate::policy::settings::Settings;

/// Health and counts kept of components that are no longer there, so that one that is dropped in again is still known.
const REMEMBERED: usize = 256;

/// What a policy was made from: the same again is the same policy.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    digest: String,
    /// A hash of what lies beside it: vectors may be a megabyte.
    beside: u64,
}

impl Key {
    fn new(name: &str, digest: &str, own: &OwnFile, vectors: Option<&str>) -> Self {
        let mut beside = DefaultHasher::new();
        format!("{own:?}").hash(&mut beside);
        vectors.hash(&mut beside);
        Self { name: name.to_owned(), digest: digest.to_owned(), beside: beside.finish() }
    }
}

impl Keeper {
    /// Looks at the directory, and swaps if that leads to another chain.
    pub(super) fn look(&mut self) {
        self.looked = Instant::now();
        let before = self.lineups.now();
        let seen = match directory::look(self.host.settings()) {
            Ok(seen) => {
                self.problem = None;
                seen
            }
            Err(error) => return self.unseen(&error),
        };
        let mut refused: Vec<Refused> = seen.strays.iter().map(|stray| refusal(stray, None)).collect();
        let mut policies = Vec::new();
        for (name, found) in seen.policies {
            let good = before.policies.iter().find(|it| it.name == name);
            match found.map_err(|error| refusal(&error, None)).and_then(|found| self.policy(found, good)) {
                Ok(Some(policy)) => policies.push(policy),
                Ok(None) => {}
                Err(mut error) => {
                    error.kept = good.map(|good| good.digest.clone());
                    policies.extend(good.cloned());
                    refused.push(error);
                }
            }
        }
        self.compiling.ready.clear();
        self.refuse(refused, seen.strays.len());
        self.swap(&before, policies);
    }

    /// The directory could not be read: what runs goes on.
    fn unseen(&mut self, error: &LoadError) {
        let problem = error.to_string();
        if self.problem.as_ref() != Some(&problem) {
            tracing::error!(problem, "the policy directory is not read; the last good chain stays");
        }
        self.problem = Some(problem);
        let before = self.lineups.now();
        let kept = before.policies.iter().map(|it| it.digest.as_str()).collect::<Vec<_>>().join(" ");
        self.refused = vec![refusal(error, (!kept.is_empty()).then_some(kept))];
        if before.generation == 0 {
            // At the start there is no last good one: the built-in default rules.
            let alone = Settings { directory: None, ..self.host.settings().clone() };
            let seen = directory::look(&alone).unwrap_or_else(|_| Seen::default());
            let found = seen.policies.into_values().filter_map(Result::ok);
            let policies = found.filter_map(|found| self.policy(found, None).ok().flatten()).collect();
            self.swap(&before, policies);
        }
    }

    /// The policy of what was found: the one that runs, if it is of the same files, else a new one. `None`: it is switched off.
    fn policy(&mut self, found: Found, good: Option<&Arc<Policy>>) -> Result<Option<Arc<Policy>>, Refused> {
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
            return Err(Refused { subject: found.name, reason: reason.clone(), kept: None });
        }
        match self.load(&found) {
            Ok(Some(policy)) => Ok(Some(Arc::new(policy))),
            Ok(None) => Err(Refused { subject: found.name, reason: COMPILING.to_owned(), kept: None }),
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
    fn load(&mut self, found: &Found) -> Result<Option<Policy>, LoadError> {
        let compile = |reason| LoadError::Compile { policy: found.name.clone(), reason };
        let digest = &found.bytes.digest;
        let component = match self.cache.look(&self.host, digest) {
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
        let (health, counts) = (self.health(found), self.counts(found));
        prepare(&self.host, found, &component, health, counts).map(Some)
    }

    fn health(&mut self, found: &Found) -> Arc<Health> {
        if self.health.len() > REMEMBERED {
            self.health.retain(|_, health| Arc::strong_count(health) > 1);
        }
        let limits = self.host.settings().quarantine;
        let new = || Arc::new(Health::new(found.name.clone(), limits));
        Arc::clone(self.health.entry(found.bytes.digest.clone()).or_insert_with(new))
    }

    fn counts(&mut self, found: &Found) -> Arc<Counts> {
        if self.counts.len() > REMEMBERED {
            self.counts.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        Arc::clone(self.counts.entry((found.name.clone(), found.bytes.digest.clone())).or_default())
    }

    /// Remembers what is refused now, the strays first, and logs what was not before.
    fn refuse(&mut self, refused: Vec<Refused>, strays: usize) {
        let news = refused.iter().enumerate();
        for (at, new) in news.filter(|(_, it)| it.reason != COMPILING && !self.refused.contains(it)) {
            if at < strays {
                // The configuration of a policy that is about to come, often.
                tracing::warn!(subject = new.subject, reason = new.reason, "a file is passed over");
                continue;
            }
            let kept = new.kept.as_deref().unwrap_or("none");
            tracing::error!(
                subject = new.subject,
                reason = new.reason,
                kept,
                "policy refused; the others run"
            );
        }
        self.refused = refused;
    }

    fn swap(&mut self, before: &Lineup, policies: Vec<Arc<Policy>>) {
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
                "policy runs"
            );
        }
        for gone in before.policies.iter().filter(|it| !policies.iter().any(|new| new.name == it.name)) {
            tracing::info!(generation, policy = gone.name, digest = gone.digest, "policy removed");
        }
        self.lineups.store(Lineup { generation, policies });
    }
}

fn refusal(error: &LoadError, kept: Option<String>) -> Refused {
    Refused { subject: error.subject(), reason: error.to_string(), kept }
}
