//! The one task that owns every descriptor the kernel speaks through, and turns what it says into state.
//!
//! All of them are in one epoll, so a container costs two descriptors and no task. Files under /sys/fs/cgroup and /proc
//! are read in place: the kernel makes them up from memory, and a thread to wait on them would cost more than they do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::OomKill;
use rustix::event::{Timespec, epoll};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::arming::Arming;
use crate::cgroup::{Hierarchy, Kills};
use crate::connector::Connector;
use crate::discover::{Change, Tree};
use crate::exit::Tracked;
use crate::kmsg::Kmsg;
use crate::log::log;
use crate::looks::{Looks, Notices};
use crate::placement::Placement;
use crate::pressure;
use crate::reap;
use crate::request::Request;
use crate::shared::Shared;
use crate::signals::Signals;
use crate::state::State;

/// Readiness taken from epoll at once.
const BATCH: usize = 64;
/// Batches taken before others have their turn: containers that are short of memory can have the kernel say so without a pause, and nobody
/// would hear anything of the agent.
const TURNS: usize = 8;
/// After the last of something to do, room that is no longer used is let go of.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// What became ready, as epoll's 64 bits: the kind above, the number below.
const TREE: u64 = 0;
const CONNECTOR: u64 = 1 << 32;
const KMSG: u64 = 4 << 32;
pub(crate) const OOM_EVENT: u64 = 2 << 32;
pub(crate) const PROCESS: u64 = 3 << 32;
/// Which of the container's triggers is above.
pub(crate) const PRESSURE: u64 = 5 << 32;
const KIND: u64 = 0xff << 32;

/// A container being watched.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) cgroup: Arc<str>,
    /// Somebody asked for it: it may not be below the roots.
    pub(crate) requested: bool,
    /// The counters as last read; none until they could be.
    pub(crate) kills: Option<Kills>,
    /// Kills of earlier cgroups of this container: a new cgroup counts from zero.
    pub(crate) kills_earlier: u64,
    pub(crate) trouble_told: bool,
    /// The last kill that was told: a group's death takes several reads.
    pub(crate) told_kill: Option<Box<OomKill>>,
    pub(crate) oom_event: Option<OwnedFd>,
    pub(crate) kill_looks: Looks,
    pub(crate) notices: Notices,
    pub(crate) init_looks: Looks,
    pub(crate) init: Option<Tracked>,
    pub(crate) execs: BTreeMap<String, Tracked>,
    pub(crate) pressure: pressure::Watched,
    /// A process was seen in it; and since when none is.
    pub(crate) populated: bool,
    pub(crate) emptied: Option<Instant>,
    /// Its cgroup was removed; it stays until its processes' ends are told.
    pub(crate) gone: bool,
}

/// What a watcher watches with.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) tree: Tree,
    pub(crate) connector: Option<Connector>,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) placement: Placement,
    pub(crate) pressure: Vec<pressure::Rule>,
}

/// Everything there is to watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tree: Tree,
    pub(crate) connector: Option<Connector>,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) epoll: Arc<OwnedFd>,
    pub(crate) containers: BTreeMap<u32, Box<Container>>,
    pub(crate) by_cgroup: BTreeMap<Arc<str>, u32>,
    pub(crate) by_id: BTreeMap<String, u32>,
    pub(crate) by_pid: BTreeMap<u32, (u32, Option<String>)>,
    /// Containers whose init is being looked for.
    pub(crate) starting: BTreeSet<u32>,
    /// What the tree told is being taken in.
    pub(crate) learning: bool,
    /// How processes ended that nobody had named yet, by pid, the latest last.
    pub(crate) recent: VecDeque<(u32, u32)>,
    pub(crate) due: BTreeSet<(Instant, u32)>,
    pub(crate) placement: Placement,
    /// Processes whose parents ended become this one's children.
    pub(crate) reaps: bool,
    pub(crate) command: Option<reap::Command>,
    pub(crate) pressure: Vec<pressure::Rule>,
    pub(crate) arming: Arming,
    next_key: u32,
    full: bool,
}

impl Watcher {
    /// Finds what is there. Kills up to now are no signals.
    pub(crate) fn start(means: Means, shared: Arc<Shared>) -> std::io::Result<Self> {
        let Means { hierarchy, tree, connector, kmsg, placement, pressure } = means;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let mut watcher = Self {
            hierarchy,
            shared,
            tree,
            connector,
            kmsg,
            epoll,
            containers: BTreeMap::new(),
            by_cgroup: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            starting: BTreeSet::new(),
            learning: false,
            recent: VecDeque::new(),
            due: BTreeSet::new(),
            placement,
            reaps: placement == Placement::Reaper,
            command: None,
            pressure,
            arming: Arming::default(),
            next_key: 0,
            full: false,
        };
        let mut found = Vec::new();
        watcher.tree.search(&mut found);
        for change in found {
            if let Change::Appeared { id, cgroup } = change {
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
        Ok(watcher)
    }

    /// Watches until nobody can ask any more.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> std::io::Result<()> {
        let ready = coroner_cgroup::ready::register(Arc::clone(&self.epoll))?;
        let children = Signals::of(&[libc::SIGCHLD])?;
        self.reap();
        let mut tidy_at = Some(Instant::now() + TIDY_AFTER);
        loop {
            self.go_on_arming();
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
                    if self.turns()? {
                        guard.clear_ready();
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                (key, armed) = self.arming.done() => self.take_armed(key, armed),
                request = requests.recv() => match request {
                    Some(request) => {
                        // What the kernel has said already comes before the question.
                        self.turns()?;
                        self.answer(request);
                    }
                    None => return Ok(()),
                },
                () = children.came(), if self.reaps => drop(self.turns()?),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tend_all(),
            }
            tidy_at = Some(Instant::now() + TIDY_AFTER);
        }
    }

    /// Lets go of room that a storm needed.
    fn shrink(&mut self) {
        self.recent.shrink_to_fit();
        self.arming.shrink();
        self.shared.with(State::shrink);
    }

    /// Takes in what is ready. False: there may be more.
    fn turns(&mut self) -> std::io::Result<bool> {
        for _ in 0..TURNS {
            if !self.turn()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes in a batch of what is ready. False: nothing was.
    fn turn(&mut self) -> std::io::Result<bool> {
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
        // Folders first, so that a process event finds its container; then how processes ended, then that they did.
        if is_ready(TREE) {
            self.learn();
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
        Ok(count > 0)
    }

    /// Begins to watch a container. None: there are too many.
    pub(crate) fn appear(&mut self, id: &str, cgroup: &Arc<str>, origin: Origin) -> Option<u32> {
        if let Some(key) = self.by_id.get(id) {
            // The same id in two places: the first stands.
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
        if !self.shared.with(|state| state.appear(id, cgroup, before)) {
            if !std::mem::replace(&mut self.full, true) {
                log!(
                    Error,
                    "too many containers; the rest is not watched",
                    most = crate::state::MAX_CONTAINERS
                );
            }
            self.tree.forget(cgroup);
            return None;
        }
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        let container = Container {
            id: id.to_owned(),
            cgroup: Arc::clone(cgroup),
            requested: matches!(origin, Origin::Requested),
            kills,
            kills_earlier: earlier,
            trouble_told: false,
            told_kill: None,
            oom_event: None,
            kill_looks: Looks::kills(),
            notices: Notices::default(),
            init_looks: Looks::init(),
            init: None,
            execs: BTreeMap::new(),
            pressure: pressure::Watched::default(),
            populated: false,
            emptied: None,
            gone: false,
        };
        log!(Debug, "container appeared", container = id, cgroup = cgroup);
        self.containers.insert(key, Box::new(container));
        self.by_cgroup.insert(Arc::clone(cgroup), key);
        self.by_id.insert(id.to_owned(), key);
        // First: a process that has just begun may not live for long.
        self.entered(key);
        self.arm(key);
        self.read_limit(key);
        self.look_at_kills(key);
        self.population_changed(key, false);
        self.plan_usual_pressure(key);
        Some(key)
    }

    /// Lets go of a container whose last exit was told.
    pub(crate) fn remove(&mut self, key: u32) {
        self.disarm(key);
        let Some(container) = self.containers.remove(&key) else { return };
        for tracked in container.init.iter().chain(container.execs.values()) {
            self.by_pid.remove(&tracked.pid);
        }
        self.unlink(key, &container.id, &container.cgroup);
    }

    /// Its id and its cgroup may come again.
    pub(crate) fn unlink(&mut self, key: u32, id: &str, cgroup: &str) {
        if self.by_cgroup.get(cgroup) == Some(&key) {
            self.by_cgroup.remove(cgroup);
        }
        if self.by_id.get(id) == Some(&key) {
            self.by_id.remove(id);
        }
        self.starting.remove(&key);
    }

    /// Looks again where it is time to.
    fn tend_all(&mut self) {
        let now = Instant::now();
        while let Some((at, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, key));
            self.drain_connector();
            self.tend_kills(key, now);
            self.tend_notices(key, now);
            self.tend_init(key, now);
            self.tend_exits(key, now);
            self.tend_emptied(key, now);
            self.tend_pressure(key, now);
        }
    }

    pub(crate) fn listen(&self, source: impl AsFd, token: u64) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&*self.epoll, source, data, epoll::EventFlags::IN)?)
    }
}

/// How a container came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was there when the agent began.
    Earlier,
    /// Its folder was made just now, so its counter began at zero.
    Now,
    /// Somebody asked for it.
    Requested,
}
