//! Keeps the chain in step with the directory: looks, loads what is new beside what runs, and swaps the whole of it or nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use wasmtime::component::Component;

use super::ask::{Ask, Policies};
use super::cache::{Bytes, Cache};
use super::chain::Lineup;
use super::compile::CompileError;
use super::counts::{Counts, unix_ms};
use super::directory::{self, Found, Seen};
use super::health::Health;
use super::host::Host;
use super::load::{LoadError, Policy, prepare};
use super::own_file::OwnFile;
use super::promote;
use super::report::{Inspection, Listing, Promoted, Released, Reloaded};
use super::watch::Watch;
use crate::audit::{self, ChainLink, Refused};
use crate::case::Known;
use crate::config::PolicyMode;

/// After a change of the directory, this long without another: a burst of changes is one.
const QUIET: Duration = Duration::from_millis(25);
/// A directory that never is quiet is looked at this often all the same.
const BURST: Duration = Duration::from_millis(500);
/// Compilers at once: one that takes its whole minute holds nobody else up.
const COMPILERS: usize = 2;
/// Health and counts kept of components that are no longer there, so that one that is dropped in again is still known.
const REMEMBERED: usize = 256;
/// How often the directory is looked at when nothing tells of its changes.
const UNWATCHED: Duration = Duration::from_secs(5);

/// The lineup that rules now. Cheap to share, and to look at for every signal.
#[derive(Clone, Debug)]
pub struct Lineups(Arc<ArcSwap<Lineup>>);

impl Lineups {
    /// One that is never swapped.
    pub fn fixed(policies: Vec<Arc<Policy>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Lineup { generation: 1, policies })))
    }

    /// The one that rules now, if it is another than `generation`.
    pub fn after(&self, generation: u64) -> Option<Arc<Lineup>> {
        let lineup = self.0.load();
        (lineup.generation != generation).then(|| Arc::clone(&lineup))
    }

    /// The one that rules now.
    pub fn now(&self) -> Arc<Lineup> {
        self.0.load_full()
    }
}

/// What the keeper reaches outside of itself.
pub struct Outside {
    /// Takes what was swapped or refused, for the audit.
    pub told: Box<dyn Fn(audit::Chain) + Send>,
    /// Has idle workers look at the lineup, so that they let go of what they no longer use.
    pub wake: Box<dyn Fn() + Send>,
    /// Per source, what can be known there at all.
    pub sources: Vec<(String, Vec<Known>)>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// Loads policies and swaps lineups.
pub struct Keeper {
    pub(super) host: Arc<Host>,
    cache: Cache,
    lineups: Lineups,
    /// What was refused at the last look.
    refused: Vec<Refused>,
    /// Why the directory could not be looked at.
    problem: Option<String>,
    /// What failed, and would again.
    failed: HashMap<Key, String>,
    health: HashMap<String, Arc<Health>>,
    counts: HashMap<(String, String), Arc<Counts>>,
    compiling: Compiling,
    waiting: Vec<Waiting>,
    looked: Instant,
    pub(super) sources: Vec<(String, Vec<Known>)>,
}

/// What a policy was made from: the same again is the same policy.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    name: String,
    digest: String,
    settings: String,
}

impl Key {
    fn new(name: &str, digest: &str, own: &OwnFile, vectors: Option<&str>) -> Self {
        Self { name: name.to_owned(), digest: digest.to_owned(), settings: format!("{own:?}{vectors:?}") }
    }
}

/// Compilers at work, and what they made.
#[derive(Default)]
struct Compiling {
    /// `None` while the router starts: then it is waited for.
    done: Option<mpsc::Sender<Ask>>,
    running: HashSet<String>,
    ready: HashMap<String, Result<Component, CompileError>>,
}

/// Somebody who wants to know what a look led to.
struct Waiting {
    answer: oneshot::Sender<Reloaded>,
    begun: Instant,
    generation: u64,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("lineups", &self.lineups).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Loads what is there; blocks until it is compiled. What was refused is logged, and the others run.
    pub fn start(host: Arc<Host>) -> Self {
        let cache = Cache::open(host.settings().cache.as_deref());
        let mut keeper = Self {
            host,
            cache,
            lineups: Lineups(Arc::new(ArcSwap::from_pointee(Lineup { generation: 0, policies: Vec::new() }))),
            refused: Vec::new(),
            problem: None,
            failed: HashMap::new(),
            health: HashMap::new(),
            counts: HashMap::new(),
            compiling: Compiling::default(),
            waiting: Vec::new(),
            looked: Instant::now(),
            sources: Vec::new(),
        };
        keeper.look();
        keeper
    }

    /// What workers follow.
    pub fn lineups(&self) -> Lineups {
        self.lineups.clone()
    }

    /// What was refused at the last look.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Follows the directory and answers asks, until told to stop. Blocks: it runs on its own thread. `policies` is the other end of
    /// `asked`.
    pub fn run(
        mut self,
        policies: &Policies,
        mut asked: mpsc::Receiver<Ask>,
        outside: Outside,
        mut stop: watch::Receiver<bool>,
    ) {
        let runtime = tokio::runtime::Handle::current();
        self.sources.clone_from(&outside.sources);
        self.warn_of_needs(&self.lineups.now().policies, &[]);
        (outside.told)(self.record());
        self.compiling.done = Some(policies.sender());
        let mut watch = Watch::new(self.host.settings().directory.as_deref(), policies.sender());
        // Between the first look and the watch something may have changed.
        let mut due = Some(Due::now());
        loop {
            let poll = self.host.settings().poll.or((!watch.follow()).then_some(UNWATCHED));
            // From the last look on: whoever asks something every moment must not put the next look off for ever.
            let poll = poll.map(|poll| (self.looked + poll).saturating_duration_since(Instant::now()));
            let wait = due.as_ref().map(Due::wait).or(poll);
            let next = runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|it| *it) => Next::Stop,
                    ask = asked.recv() => ask.map_or(Next::Stop, Next::Ask),
                    () = sleep(wait) => Next::Look,
                }
            });
            match next {
                Next::Stop => return,
                Next::Ask(Ask::Changed) => due.get_or_insert_with(Due::now).again(),
                Next::Ask(Ask::Compiled { digest, outcome }) => {
                    self.compiling.running.remove(&digest);
                    self.compiling.ready.insert(digest, outcome);
                    due = None;
                    self.look_and_tell(&outside);
                }
                Next::Ask(Ask::Reload(answer)) => {
                    due = None;
                    self.waiting.push(Waiting {
                        answer,
                        begun: Instant::now(),
                        generation: self.generation(),
                    });
                    self.look_and_tell(&outside);
                }
                Next::Ask(Ask::Promote { name, force, answer }) => {
                    let promoted = self.promote(&name, force);
                    self.look_and_tell(&outside);
                    // Whoever asked may be gone.
                    drop(answer.send(promoted));
                }
                Next::Ask(Ask::List(answer)) => drop(answer.send(self.listing())),
                Next::Ask(Ask::Inspect(name, answer)) => drop(answer.send(self.inspect(&name))),
                Next::Ask(Ask::Release(name, answer)) => drop(answer.send(self.release(&name))),
                Next::Look => {
                    due = None;
                    self.look_and_tell(&outside);
                }
            }
            if self.compiling.running.is_empty() {
                self.answer_waiting();
            }
        }
    }

    fn generation(&self) -> u64 {
        self.lineups.0.load().generation
    }

    fn look_and_tell(&mut self, outside: &Outside) {
        let before = self.lineups.now();
        let refused = self.told_refused();
        self.look();
        let after = self.lineups.now();
        if after.generation != before.generation {
            self.warn_of_needs(&after.policies, &before.policies);
            (outside.wake)();
        }
        if after.generation != before.generation || refused != self.told_refused() {
            (outside.told)(self.record());
        }
    }

    /// Looks at the directory, and swaps if that leads to another chain.
    fn look(&mut self) {
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
            let alone = super::settings::Settings { directory: None, ..self.host.settings().clone() };
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
        self.lineups.0.store(Arc::new(Lineup { generation, policies }));
    }

    fn warn_of_needs(&self, policies: &[Arc<Policy>], before: &[Arc<Policy>]) {
        for policy in policies.iter().filter(|it| !before.iter().any(|old| Arc::ptr_eq(old, it))) {
            for (source, unmet) in self.unmet(policy) {
                tracing::warn!(
                    policy = policy.name,
                    source,
                    needs = unmet.join(","),
                    "the policy needs what this source, in its mode, cannot know"
                );
            }
        }
    }

    /// Per source what a policy needs and cannot be known there.
    pub(super) fn unmet(&self, policy: &Policy) -> BTreeMap<String, Vec<String>> {
        let unmet = |known: &[Known]| {
            let needs = policy.needs().into_iter().filter(|need| !known.contains(need));
            needs.map(|need| need.name().to_owned()).collect::<Vec<_>>()
        };
        let sources = self.sources.iter().map(|(source, known)| (source.clone(), unmet(known)));
        sources.filter(|(_, unmet)| !unmet.is_empty()).collect()
    }

    fn record(&self) -> audit::Chain {
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
    fn told_refused(&self) -> Vec<Refused> {
        self.refused.iter().filter(|it| it.reason != COMPILING).cloned().collect()
    }

    fn answer_waiting(&mut self) {
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

    fn listing(&self) -> Listing {
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

    fn inspect(&self, name: &str) -> Option<Inspection> {
        let policy = self.find(name)?;
        Some(policy.inspection(self.unmet(&policy)))
    }

    fn release(&self, name: &str) -> Option<Released> {
        let policy = self.find(name)?;
        let released = policy.health.release();
        if released {
            tracing::info!(policy = policy.name, "quarantine ended by hand");
        }
        Some(Released { released, policy: policy.name.clone(), digest: policy.digest.clone() })
    }

    fn promote(&self, name: &str, force: bool) -> Option<Promoted> {
        let policy = self.find(name)?;
        Some(promote::promote(self.host.settings(), &policy, force))
    }
}

/// What a policy that is not there yet is told to be.
const COMPILING: &str = "is being compiled";

impl Compiling {
    /// Compiles beside, unless enough are at work: what has to wait is found again at the look that the next one's end leads to.
    fn begin(&mut self, host: &Arc<Host>, cache: &Cache, bytes: &Bytes) -> std::io::Result<()> {
        let Some(done) = self.done.clone() else { return Ok(()) };
        if self.running.contains(&bytes.digest) || self.running.len() >= COMPILERS {
            return Ok(());
        }
        let (host, cache, bytes) = (Arc::clone(host), cache.clone(), bytes.try_clone()?);
        let digest = bytes.digest.clone();
        self.running.insert(digest.clone());
        std::thread::Builder::new().name("policy-compiler".to_owned()).spawn(move || {
            let outcome = cache.compile(&host, &bytes);
            // The keeper has stopped, and nobody needs it.
            done.blocking_send(Ask::Compiled { digest, outcome }).unwrap_or(());
        })?;
        Ok(())
    }
}

fn refusal(error: &LoadError, kept: Option<String>) -> Refused {
    Refused { subject: error.subject(), reason: error.to_string(), kept }
}

enum Next {
    Stop,
    Ask(Ask),
    Look,
}

/// A look that is due once the directory is quiet.
struct Due {
    at: Instant,
    latest: Instant,
}

impl Due {
    fn now() -> Self {
        let now = Instant::now();
        Self { at: now, latest: now + BURST }
    }

    fn again(&mut self) {
        self.at = (Instant::now() + QUIET).min(self.latest);
    }

    fn wait(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
