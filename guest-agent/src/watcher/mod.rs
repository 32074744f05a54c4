//! The task that owns every kernel descriptor, and updates the state from what they report.
//!
//! All of them are in one epoll, so a container costs two descriptors and no task. Files under
//! /sys/fs/cgroup and /proc are read in place: the kernel generates them from memory, and a thread
//! to wait on them would cost more than the reads do.

mod causes;
mod cgroup_events;
mod container;
mod evidence;
mod exits;
mod kills;
mod memory_recorder;
mod pressure_reports;
mod psi_triggers;
pub(crate) mod reaper;
pub(crate) mod requests;
mod signals;
mod wait_status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cgroup::{Hierarchy, Kills};
use crate::cgroup_tree::{CgroupChange, CgroupTree};
use crate::connector::Connector;
use crate::evidence::{EvidenceDetail, EvidenceStore};
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::memory_history::MemoryHistory;
use crate::oom_trace::OomTrace;
use crate::placement::Placement;
use crate::pressure::PressureRule;
use crate::seen_runtimes::SeenRuntimes;
use crate::sent_signals::SentSignals;
use crate::shared_state::{SharedState, now};
use crate::signal_trace::SignalTrace;
use crate::state::State;
use crate::unix_signals::UnixSignals;
pub(crate) use crate::watcher::container::{Origin, WatchedContainer};
use crate::watcher::memory_recorder::MemoryRecorder;
use crate::watcher::psi_triggers::TriggerWorker;
use crate::watcher::requests::Request;

/// Events read from epoll at once.
const BATCH: usize = 64;
/// Batches processed before the other tasks run. Without it containers that are short of memory,
/// which cause events without a pause, could keep the agent from answering its readers.
const MAX_BATCHES: usize = 8;
/// Idle time after which unused memory is released.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// Token of a descriptor, epoll's 64 bits: the kind above, the container's key or the pid below.
const TREE: u64 = 0;
const CONNECTOR: u64 = 1 << 32;
const KMSG: u64 = 4 << 32;
const OOM_TRACE: u64 = 6 << 32;
pub(crate) const SIGNAL_TRACE: u64 = 7 << 32;
pub(crate) const OOM_EVENT: u64 = 2 << 32;
pub(crate) const PROCESS: u64 = 3 << 32;
/// Above it is the index among the container's triggers.
pub(crate) const PRESSURE: u64 = 5 << 32;
const KIND: u64 = 0xff << 32;

/// The kernel interfaces that a watcher reads.
#[derive(Debug)]
pub(crate) struct KernelSources {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) tree: CgroupTree,
    pub(crate) connector: Option<Connector>,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) traces: (Option<OomTrace>, Option<SignalTrace>),
    pub(crate) placement: Placement,
    pub(crate) pressure: Vec<PressureRule>,
    pub(crate) evidence: EvidenceDetail,
}

/// The containers, the kernel interfaces and the state they are recorded in.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) shared: Arc<SharedState>,
    pub(crate) tree: CgroupTree,
    pub(crate) connector: Option<Connector>,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) oom_trace: Option<OomTrace>,
    pub(crate) signal_trace: Option<SignalTrace>,
    /// Too many signals were sent: when their trace is read again.
    pub(crate) signals_paused: Option<Instant>,
    pub(crate) sent: SentSignals,
    pub(crate) runtimes: SeenRuntimes,
    pub(crate) epoll: Arc<OwnedFd>,
    pub(crate) containers: BTreeMap<u32, Box<WatchedContainer>>,
    pub(crate) by_cgroup: BTreeMap<Arc<str>, u32>,
    pub(crate) by_id: BTreeMap<String, u32>,
    pub(crate) by_pid: BTreeMap<u32, (u32, Option<String>)>,
    /// Containers with a search for their init under way.
    pub(crate) starting: BTreeSet<u32>,
    /// Cgroup events are being applied.
    pub(crate) draining_tree: bool,
    /// Wait statuses of processes that are not tracked, by pid, the latest last.
    pub(crate) recent: VecDeque<(u32, u32)>,
    pub(crate) due: BTreeSet<(Instant, u32)>,
    pub(crate) placement: Placement,
    /// Orphaned processes become children of the agent.
    pub(crate) reaps: bool,
    pub(crate) command: Option<reaper::StartedCommand>,
    pub(crate) pressure: Vec<PressureRule>,
    pub(crate) trigger_worker: TriggerWorker,
    pub(crate) evidence: EvidenceStore,
    pub(crate) recorder: MemoryRecorder,
    next_key: u32,
    full: bool,
}

impl Watcher {
    /// Finds the existing containers. Their kills up to now are not signals.
    pub(crate) fn start(sources: KernelSources, shared: Arc<SharedState>) -> std::io::Result<Self> {
        let KernelSources { hierarchy, tree, connector, kmsg, traces, placement, pressure, evidence } =
            sources;
        let (oom_trace, signal_trace) = traces;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let mut watcher = Self {
            hierarchy,
            shared,
            tree,
            connector,
            kmsg,
            oom_trace,
            signal_trace,
            signals_paused: None,
            sent: SentSignals::default(),
            runtimes: SeenRuntimes::default(),
            epoll,
            containers: BTreeMap::new(),
            by_cgroup: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            starting: BTreeSet::new(),
            draining_tree: false,
            recent: VecDeque::new(),
            due: BTreeSet::new(),
            placement,
            reaps: placement == Placement::Reaper,
            command: None,
            pressure,
            trigger_worker: TriggerWorker::default(),
            evidence: EvidenceStore::new(evidence),
            recorder: MemoryRecorder::new(evidence),
            next_key: 0,
            full: false,
        };
        let mut found = Vec::new();
        watcher.tree.search(&mut found);
        for change in found {
            if let CgroupChange::Appeared { id, cgroup } = change {
                watcher.appear(&id, &cgroup, Origin::Earlier);
            }
        }
        watcher.listen(&watcher.tree, TREE)?;
        if let Some(connector) = &watcher.connector {
            watcher.listen(connector, CONNECTOR)?;
        }
        if let Some(kmsg) = &watcher.kmsg {
            watcher.listen(kmsg, KMSG)?;
        }
        if let Some(trace) = &watcher.oom_trace {
            watcher.listen(trace, OOM_TRACE)?;
        }
        if let Some(trace) = &watcher.signal_trace {
            watcher.listen(trace, SIGNAL_TRACE)?;
        }
        Ok(watcher)
    }

    /// Watches until the request queue is closed.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> std::io::Result<()> {
        let ready = coroner_cgroup::ready::register(Arc::clone(&self.epoll))?;
        let children = UnixSignals::register(&[libc::SIGCHLD])?;
        self.reap();
        let mut tidy_at = Some(Instant::now() + TIDY_AFTER);
        loop {
            self.register_next_triggers();
            let due = self.due.first().map(|(at, _)| *at).into_iter().chain(self.signals_paused).min();
            let recording = self.recorder.due();
            let tidying = tokio::time::sleep_until(tidy_at.unwrap_or_else(Instant::now));
            tokio::select! {
                () = tidying, if tidy_at.is_some() => {
                    tidy_at = None;
                    self.shrink();
                    continue;
                }
                () = tokio::time::sleep_until(recording.unwrap_or_else(Instant::now)), if recording.is_some() => {
                    // It needs little memory, and must not keep what a burst needed for ever.
                    self.record_due_memory(Instant::now());
                    continue;
                }
                guard = ready.readable() => {
                    let mut guard = guard?;
                    if self.drain_batches()? {
                        guard.clear_ready();
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                (key, registered) = self.trigger_worker.done() => self.triggers_registered(key, registered),
                request = requests.recv() => match request {
                    Some(request) => {
                        // Events from before the request are applied first.
                        self.drain_batches()?;
                        self.answer(request);
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(self.evidence.due()), if self.evidence.is_pending() => {
                    self.gather_due_evidence();
                }
                () = children.received(), if self.reaps => drop(self.drain_batches()?),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.handle_due(),
            }
            self.check_memory_awake();
            tidy_at = Some(Instant::now() + TIDY_AFTER);
        }
    }

    /// Releases memory that a burst needed.
    fn shrink(&mut self) {
        self.recent.shrink_to_fit();
        self.sent.shrink();
        self.trigger_worker.shrink();
        self.close_reports();
        self.shared.with(State::shrink);
    }

    /// Processes what is ready. False: there may be more.
    fn drain_batches(&mut self) -> std::io::Result<bool> {
        for _ in 0..MAX_BATCHES {
            if !self.drain_batch()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Processes one batch of what is ready. False: nothing was.
    fn drain_batch(&mut self) -> std::io::Result<bool> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; BATCH];
        let count = match epoll::wait(&*self.epoll, &mut events[..], Some(&Timespec::default())) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let ready: Vec<(u64, bool)> = events[..count]
            .iter()
            .map(|event| ({ event.data }.u64(), { event.flags }.contains(epoll::EventFlags::ERR)))
            .collect();
        let is_ready = |token| ready.iter().any(|(it, _)| *it == token);
        // Marks first, also where this batch has no room for them: a victim's cgroup is read while
        // the process exists.
        self.drain_trace();
        self.drain_signals();
        // Cgroups next, so that a process event finds its container; then wait statuses, then
        // pidfds.
        if is_ready(TREE) {
            self.drain_tree();
        }
        self.drain_connector();
        if is_ready(KMSG) {
            self.victim_chosen();
        }
        for (token, failed) in ready {
            let number = (token & 0xffff_ffff) as u32;
            match token & KIND {
                PROCESS => self.process_ended(number),
                OOM_EVENT => self.memory_ran_out(number),
                PRESSURE => self.pressure_rose(number, (token >> 40) as usize, failed),
                _ => {}
            }
        }
        self.poll_marked();
        Ok(count > 0)
    }

    /// Begins to watch a container. None: the limit on containers is reached.
    pub(crate) fn appear(&mut self, id: &str, cgroup: &Arc<str>, origin: Origin) -> Option<u32> {
        if let Some(key) = self.by_id.get(id) {
            // The same id in two places: the first is kept.
            log!(Debug, "container found twice", container = id, cgroup = cgroup);
            return Some(*key);
        }
        self.finish_earlier(id);
        let kills = match origin {
            Origin::Now => Some(Kills::default()),
            Origin::Earlier | Origin::Requested => self.hierarchy.kills(cgroup).ok(),
        };
        let earlier = self.shared.with(|state| state.kills_total(id)).unwrap_or(0);
        let before = kills.map(|kills| earlier.saturating_add(kills.total));
        if !self.shared.with(|state| state.add(id, cgroup, before)) {
            if !std::mem::replace(&mut self.full, true) {
                log!(
                    Error,
                    "limit on containers reached; further ones are not watched",
                    most = crate::state::MAX_CONTAINERS
                );
            }
            self.tree.forget(cgroup);
            return None;
        }
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        let appeared_ns = matches!(origin, Origin::Now).then(|| now().boot_ns);
        let container = WatchedContainer {
            memory: MemoryHistory::new(appeared_ns),
            requested: matches!(origin, Origin::Requested),
            kills,
            kills_earlier: earlier,
            oomd_before: self.hierarchy.oomd_kills(cgroup),
            ..WatchedContainer::new(id, cgroup)
        };
        log!(Debug, "container appeared", container = id, cgroup = cgroup);
        self.containers.insert(key, Box::new(container));
        self.by_cgroup.insert(Arc::clone(cgroup), key);
        self.by_id.insert(id.to_owned(), key);
        // First: a process that has just begun may be short-lived.
        self.entered(key);
        self.register_oom_event(key);
        self.read_limit(key);
        self.poll_kills(key);
        self.population_changed(key, false);
        self.schedule_usual_triggers(key);
        Some(key)
    }

    /// Removes a container after its last exit was recorded.
    pub(crate) fn remove(&mut self, key: u32) {
        self.release_triggers(key);
        self.forget_memory(key);
        let Some(container) = self.containers.remove(&key) else { return };
        for tracked in container.init.iter().chain(container.execs.values()) {
            self.by_pid.remove(&tracked.pid);
            self.sent.forget(tracked.pid);
        }
        // Another container may be made at its path.
        self.forget_victims(&container.cgroup);
        self.unlink(key, &container.id, &container.cgroup);
    }

    /// Frees its id and its cgroup for another container.
    pub(crate) fn unlink(&mut self, key: u32, id: &str, cgroup: &str) {
        if self.by_cgroup.get(cgroup) == Some(&key) {
            self.by_cgroup.remove(cgroup);
        }
        if self.by_id.get(id) == Some(&key) {
            self.by_id.remove(id);
        }
        self.starting.remove(&key);
    }

    /// Runs everything that is due: polls, timeouts, triggers.
    fn handle_due(&mut self) {
        let now = Instant::now();
        self.resume_signals(now);
        while let Some((at, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, key));
            self.drain_connector();
            self.poll_due_kills(key, now);
            self.poll_due_notices(key, now);
            self.poll_due_init(key, now);
            self.record_due_exits(key, now);
            self.record_due_emptied(key, now);
            self.register_due_triggers(key, now);
        }
        self.poll_marked();
    }

    pub(crate) fn listen(&self, source: impl AsFd, token: u64) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&*self.epoll, source, data, epoll::EventFlags::IN)?)
    }
}
