//! The task that owns every kernel descriptor, and updates the state from what they report.
//!
//! All of them are in one epoll, so a container costs two descriptors and no task. Files under
//! /sys/fs/cgroup and /proc are read in place: the kernel generates them from memory, and a thread
//! to wait on them would cost more than the reads do.

mod cgroup_events;
mod exits;
mod kills;
mod pressure_reports;
mod psi_triggers;
pub(crate) mod reaper;
pub(crate) mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::OomKill;
use rustix::event::{Timespec, epoll};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cgroup::{Hierarchy, Kills};
use crate::cgroup_tree::{CgroupChange, CgroupTree};
use crate::connector::Connector;
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::oom_trace::OomTrace;
use crate::placement::Placement;
use crate::pressure::PressureRule;
use crate::shared_state::SharedState;
use crate::state::State;
use crate::unix_signals::UnixSignals;
use crate::watcher::exits::TrackedProcess;
use crate::watcher::pressure_reports::PressureState;
use crate::watcher::psi_triggers::TriggerWorker;
use crate::watcher::requests::Request;
use coroner_cgroup::poll_schedule::{NoticeSchedule, PollSchedule};

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
pub(crate) const OOM_EVENT: u64 = 2 << 32;
pub(crate) const PROCESS: u64 = 3 << 32;
/// Above it is the index among the container's triggers.
pub(crate) const PRESSURE: u64 = 5 << 32;
const KIND: u64 = 0xff << 32;

/// A container being watched.
#[derive(Debug)]
pub(crate) struct WatchedContainer {
    pub(crate) id: String,
    pub(crate) cgroup: Arc<str>,
    /// A reader requested it: it may not be below the roots.
    pub(crate) requested: bool,
    /// The counters as last read; none before the first successful read.
    pub(crate) kills: Option<Kills>,
    /// Kills of earlier cgroups of this container: a new cgroup counts from zero.
    pub(crate) kills_earlier: u64,
    pub(crate) read_error_logged: bool,
    /// The last kill that was recorded: the kill of a group takes several reads.
    pub(crate) last_kill: Option<Box<OomKill>>,
    pub(crate) oom_event: Option<OwnedFd>,
    pub(crate) kill_polls: PollSchedule,
    pub(crate) notices: NoticeSchedule,
    pub(crate) init_polls: PollSchedule,
    pub(crate) init: Option<TrackedProcess>,
    /// The pid of the init while its exit is recorded, and after it.
    pub(crate) ended_init: Option<u32>,
    pub(crate) execs: BTreeMap<String, TrackedProcess>,
    pub(crate) pressure: PressureState,
    /// A process was seen in it.
    pub(crate) populated: bool,
    /// Since when no process is in it.
    pub(crate) emptied: Option<Instant>,
    /// Its cgroup was removed; it stays until the exits of its processes are recorded.
    pub(crate) gone: bool,
}

/// The kernel interfaces that a watcher reads.
#[derive(Debug)]
pub(crate) struct KernelSources {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) tree: CgroupTree,
    pub(crate) connector: Option<Connector>,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) oom_trace: Option<OomTrace>,
    pub(crate) placement: Placement,
    pub(crate) pressure: Vec<PressureRule>,
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
    next_key: u32,
    full: bool,
}

impl Watcher {
    /// Finds the existing containers. Their kills up to now are not signals.
    pub(crate) fn start(sources: KernelSources, shared: Arc<SharedState>) -> std::io::Result<Self> {
        let KernelSources { hierarchy, tree, connector, kmsg, oom_trace, placement, pressure } = sources;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let mut watcher = Self {
            hierarchy,
            shared,
            tree,
            connector,
            kmsg,
            oom_trace,
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
            let due = self.due.first().map(|(at, _)| *at);
            let tidying = tokio::time::sleep_until(tidy_at.unwrap_or_else(Instant::now));
            tokio::select! {
                () = tidying, if tidy_at.is_some() => {
                    tidy_at = None;
                    self.shrink();
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
                () = children.received(), if self.reaps => drop(self.drain_batches()?),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.handle_due(),
            }
            tidy_at = Some(Instant::now() + TIDY_AFTER);
        }
    }

    /// Releases memory that a burst needed.
    fn shrink(&mut self) {
        self.recent.shrink_to_fit();
        self.trigger_worker.shrink();
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
        let container = WatchedContainer {
            id: id.to_owned(),
            cgroup: Arc::clone(cgroup),
            requested: matches!(origin, Origin::Requested),
            kills,
            kills_earlier: earlier,
            read_error_logged: false,
            last_kill: None,
            oom_event: None,
            kill_polls: PollSchedule::kills(),
            notices: NoticeSchedule::default(),
            init_polls: PollSchedule::init(),
            init: None,
            ended_init: None,
            execs: BTreeMap::new(),
            pressure: PressureState::default(),
            populated: false,
            emptied: None,
            gone: false,
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
        let Some(container) = self.containers.remove(&key) else { return };
        for tracked in container.init.iter().chain(container.execs.values()) {
            self.by_pid.remove(&tracked.pid);
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

/// How a container was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It existed when the agent started.
    Earlier,
    /// Its cgroup was created just now, so its counter began at zero.
    Now,
    /// A reader requested it.
    Requested,
}
