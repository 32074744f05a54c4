//! Keeps the chain in step with the directory: follows what changes, answers who asks, and tells of swaps.
//!
//! `look` is what happens at each look at the directory, `compiling` what goes on beside, `answer` what is told.

mod answer;
mod compiling;
mod look;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::ask::{Ask, Policies};
use super::cache::Cache;
use super::counts::Counts;
use super::health::Health;
use super::host::Host;
use super::lineup::Lineups;
use super::load::Policy;
use super::report::Reloaded;
use super::watch::Watch;
use crate::audit::{self, Refused};
use crate::case::Known;
use compiling::Compiling;
use look::Key;

/// After a change of the directory, this long without another: a burst of changes is one.
const QUIET: Duration = Duration::from_millis(25);
/// A directory that never is quiet is looked at this often all the same.
const BURST: Duration = Duration::from_millis(500);
/// How often the directory is looked at when nothing tells of its changes.
const UNWATCHED: Duration = Duration::from_secs(5);

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
    host: Arc<Host>,
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
    sources: Vec<(String, Vec<Known>)>,
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
        // On a thread that belongs to no runtime: a policy that uses WASI waits for its streams on one of its own, which cannot be
        // done from within another.
        std::thread::scope(|scope| scope.spawn(|| Self::first(host)).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn first(host: Arc<Host>) -> Self {
        let cache = Cache::open(host.settings().cache.as_deref());
        let mut keeper = Self {
            host,
            cache,
            lineups: Lineups::empty(),
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
                    // Somebody wants to know: what failed on a busy node may do now.
                    self.failed.clear();
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
        self.lineups.now().generation
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
