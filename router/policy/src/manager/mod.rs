//! The policy manager: follows the directory, answers requests, and reports swaps of the chain.
//!
//! `reload` reads the directory, `compile_pool` compiles beside it, `listing` has the answers.
//! The field's name: hot reload, atomic swap.

mod listing;
mod compile_pool;
mod reload;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::cache::Cache;
use super::chain_snapshot::ActiveChain;
use super::counts::PolicyCounts;
use super::host::Host;
use super::last_good::LastGood;
use super::manager_client::{ManagerRequest, PolicyClient};
use super::policy::Policy;
use super::quarantine::CircuitBreaker;
use super::report::Reloaded;
use super::watch::DirectoryWatcher;
use compile_pool::CompilePool;
use coroner_core::audit::{self, Refused};
use coroner_core::mode::Known;
use reload::Key;

/// Debounce: a change of the directory is read after this time without another one.
const QUIET: Duration = Duration::from_millis(25);
/// A directory that keeps changing is read this often all the same.
const BURST: Duration = Duration::from_millis(500);
/// Poll interval of a directory that cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(5);

/// The manager's outside connections.
pub struct Outside {
    /// Receives each swap and refusal, for the audit.
    pub record: Box<dyn Fn(audit::ChainRecord) + Send>,
    /// Wakes idle workers, so that they drop policies of the old snapshot.
    pub wake: Box<dyn Fn() + Send>,
    /// Per source, what can be known there.
    pub sources: Vec<(String, Vec<Known>)>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// Loads policies and swaps the chain snapshot.
pub struct PolicyManager {
    host: Arc<Host>,
    cache: Cache,
    last_good: LastGood,
    active_chain: ActiveChain,
    /// Policies refused at the last reload.
    refused: Vec<Refused>,
    /// Why the directory could not be read.
    problem: Option<String>,
    /// Files that failed and would fail again.
    failed: HashMap<Key, String>,
    breakers: HashMap<String, Arc<CircuitBreaker>>,
    counts: HashMap<(String, String), Arc<PolicyCounts>>,
    compiling: CompilePool,
    waiting: Vec<WaitingRequest>,
    last_reload: Instant,
    sources: Vec<(String, Vec<Known>)>,
}

/// A requester that waits for a reload's result.
struct WaitingRequest {
    answer: oneshot::Sender<Reloaded>,
    begun: Instant,
    generation: u64,
}

impl std::fmt::Debug for PolicyManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyManager").field("active_chain", &self.active_chain).finish_non_exhaustive()
    }
}

impl PolicyManager {
    /// Loads the directory; blocks until everything is compiled. Refused policies are logged, the
    /// others run.
    pub fn start(host: Arc<Host>) -> Self {
        // On a thread without a runtime: a policy that uses WASI blocks on a runtime of its own,
        // which is not possible within another.
        std::thread::scope(|scope| scope.spawn(|| Self::first(host)).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn first(host: Arc<Host>) -> Self {
        let cache = Cache::open(host.settings().cache.as_deref());
        let last_good = LastGood::open(host.settings());
        let mut manager = Self {
            host,
            cache,
            last_good,
            active_chain: ActiveChain::empty(),
            refused: Vec::new(),
            problem: None,
            failed: HashMap::new(),
            breakers: HashMap::new(),
            counts: HashMap::new(),
            compiling: CompilePool::default(),
            waiting: Vec::new(),
            last_reload: Instant::now(),
            sources: Vec::new(),
        };
        manager.reload();
        manager
    }

    /// The chain for the workers.
    pub fn active_chain(&self) -> ActiveChain {
        self.active_chain.clone()
    }

    /// Policies refused at the last reload.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Follows the directory and answers requests until shutdown. Blocks: it runs on its own
    /// thread. `policies` is the sending end of `requests`.
    pub fn run(
        mut self,
        policies: &PolicyClient,
        mut requests: mpsc::Receiver<ManagerRequest>,
        outside: Outside,
        mut stop: watch::Receiver<bool>,
    ) {
        let runtime = tokio::runtime::Handle::current();
        self.sources.clone_from(&outside.sources);
        self.warn_of_needs(&self.active_chain.now().policies, &[]);
        (outside.record)(self.record());
        if self.host.settings().directory.is_some() && !self.last_good.is_kept() {
            tracing::warn!(
                "no directory to keep the last good policies in: a policy that is refused after a restart \
                 does not run; set policies.cache"
            );
        }
        self.compiling.done = Some(policies.sender());
        let mut watch = DirectoryWatcher::new(self.host.settings().directory.as_deref(), policies.sender());
        // The directory may have changed between the first reload and the watch.
        let mut due = Some(Due::now());
        loop {
            let poll = self.host.settings().poll.or((!watch.follow()).then_some(UNWATCHED));
            // Counted from the last reload: frequent requests must not postpone the next one for
            // ever.
            let poll = poll.map(|poll| (self.last_reload + poll).saturating_duration_since(Instant::now()));
            let wait = due.as_ref().map(Due::wait).or(poll);
            let next = runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|it| *it) => ManagerEvent::Stop,
                    request = requests.recv() => request.map_or(ManagerEvent::Stop, ManagerEvent::Request),
                    () = sleep(wait) => ManagerEvent::Reload,
                }
            });
            match next {
                ManagerEvent::Stop => return,
                ManagerEvent::Request(request) => self.handle(request, &mut due, &outside),
                ManagerEvent::Reload => {
                    due = None;
                    self.reload_and_report(&outside);
                }
            }
            if self.compiling.running.is_empty() {
                self.answer_waiting();
            }
        }
    }

    /// Handles one request. `due`: the reload that a change of the directory makes due.
    fn handle(&mut self, request: ManagerRequest, due: &mut Option<Due>, outside: &Outside) {
        match request {
            ManagerRequest::Changed => due.get_or_insert_with(Due::now).again(),
            ManagerRequest::Compiled { digest, outcome } => {
                self.compiling.running.remove(&digest);
                self.compiling.ready.insert(digest, outcome);
                *due = None;
                self.reload_and_report(outside);
            }
            ManagerRequest::Reload(answer) => {
                *due = None;
                // An operator's request retries what failed on a busy node.
                self.failed.clear();
                self.waiting.push(WaitingRequest {
                    answer,
                    begun: Instant::now(),
                    generation: self.generation(),
                });
                self.reload_and_report(outside);
            }
            // The requester may be gone: the answers are dropped then.
            ManagerRequest::Promote { name, force, answer } => {
                let promoted = self.promote(&name, force);
                self.reload_and_report(outside);
                drop(answer.send(promoted));
            }
            ManagerRequest::List(answer) => drop(answer.send(self.listing())),
            ManagerRequest::Inspect(name, answer) => drop(answer.send(self.inspect(&name))),
            ManagerRequest::Release(name, answer) => drop(answer.send(self.release(&name))),
        }
    }

    fn generation(&self) -> u64 {
        self.active_chain.now().generation
    }

    fn reload_and_report(&mut self, outside: &Outside) {
        let before = self.active_chain.now();
        let refused = self.final_refused();
        self.reload();
        let after = self.active_chain.now();
        if after.generation != before.generation {
            self.warn_of_needs(&after.policies, &before.policies);
            (outside.wake)();
        }
        if after.generation != before.generation || refused != self.final_refused() {
            (outside.record)(self.record());
        }
    }

    fn warn_of_needs(&self, policies: &[Arc<Policy>], before: &[Arc<Policy>]) {
        for policy in policies.iter().filter(|it| !before.iter().any(|old| Arc::ptr_eq(old, it))) {
            for (source, unmet) in self.unmet(policy) {
                tracing::warn!(
                    policy = policy.name,
                    source,
                    needs = unmet.join(","),
                    "the policy needs facts that this source does not have in its mode"
                );
            }
        }
    }
}

enum ManagerEvent {
    Stop,
    Request(ManagerRequest),
    Reload,
}

/// A reload that is due once the directory is quiet.
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
