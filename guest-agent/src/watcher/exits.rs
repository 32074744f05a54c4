//! Exits: a pidfd for each process reports that it ended, the kernel's process events report how.
//!
//! A container's init is the process in its cgroup that is pid 1 of an inner pid namespace. Where a
//! container shares a pid namespace (the host's, or its pod's) no process qualifies, and the agent
//! does not guess: the only process in a cgroup may well be the runtime's own, about to exit. The
//! exit of such a container is reported when a reader named its init by Watch; otherwise, without a
//! status, when its cgroup is removed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use coroner_proto::agent::Exited;
use protobuf::MessageField;
use rustix::event::epoll;
use tokio::time::Instant;

use crate::connector::{Connector, ProcessEvent};
use crate::log::log;
use crate::placement::Placement;
use crate::process;
use crate::shared_state::now;
use crate::watcher::{PROCESS, Watcher, wait_status};

/// Timeout for the process event of an exit. The kernel signals the pidfd first and queues the
/// event after: exit_notify and proc_exit_connector in do_exit. The dying process may not run in
/// between while a hundred others do: 100 ms were too few for a storm of 50 containers on one
/// processor. An event that the kernel had no room for never comes, which is rare; its exit is
/// reported this late.
const EXIT_EVENT_TIMEOUT: Duration = Duration::from_secs(2);
/// A cgroup without processes is a container's end after this long: a runtime may test the cgroup
/// with a process before the container begins.
const EMPTY_AFTER: Duration = Duration::from_millis(100);
/// Wait statuses kept of processes that are not tracked: a shim may name its init after it ended.
const MAX_RECENT: usize = 128;
/// Limits on execs tracked in one container, and on tracked processes in all. Each holds a
/// descriptor: without them a reader could use up all descriptors.
pub(crate) const MAX_EXECS: usize = 64;
pub(crate) const MAX_PROCESSES: usize = 16 << 10;

/// A process with a pidfd, tracked until its exit is recorded.
#[derive(Debug)]
pub(crate) struct TrackedProcess {
    pub(crate) pid: u32,
    pub(crate) handle: OwnedFd,
    /// On the boot clock; none: it was gone before that could be read.
    pub(crate) started: Option<Duration>,
    /// The wait(2) status, by the latest event of one of its threads.
    pub(crate) code: Option<u32>,
    /// That event came after the whole process had ended.
    pub(crate) is_last: bool,
    pub(crate) ended: Option<Instant>,
}

impl Watcher {
    /// A process entered a container's cgroup: starts the search for the init.
    pub(crate) fn entered(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.init.is_some() || self.shared.with(|state| state.has_exited(&container.id)) {
            return;
        }
        self.starting.insert(key);
        if let Some(at) = container.init_polls.begin(Instant::now()) {
            self.due.insert((at, key));
        }
        self.find_init(key);
    }

    pub(crate) fn poll_due_init(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(next) = container.init_polls.due(now) else { return };
        if let Some(at) = next {
            self.due.insert((at, key));
        }
        self.find_init(key);
        if next.is_none() {
            // No process qualifies as the init: the search ends, so that it does not inspect every
            // new process of the machine for ever.
            self.starting.remove(&key);
        }
    }

    fn find_init(&mut self, key: u32) {
        let Some(container) = self.containers.get(&key).filter(|_| self.starting.contains(&key)) else {
            return;
        };
        let processes = self.hierarchy.processes(&container.cgroup).unwrap_or_default();
        // The outermost: a container may hold namespaces of its own.
        let found = processes.into_iter().filter_map(|pid| Some((process::init_depth(pid)?, pid))).min();
        if let Some((_, pid)) = found {
            self.track_found(key, pid);
        }
    }

    /// Tracks an init that was found, unless its pid was reused meanwhile.
    fn track_found(&mut self, key: u32, pid: u32) {
        let Some(handle) = process::open(pid) else { return };
        let there = self.hierarchy.cgroup_of(pid);
        if there.and_then(|cgroup| self.container_at(&cgroup)) == Some(key) {
            self.track(key, None, pid, handle);
        }
    }

    /// The container a cgroup belongs to, or is below.
    pub(crate) fn container_at(&self, cgroup: &str) -> Option<u32> {
        let mut path = cgroup;
        loop {
            if let Some(key) = self.by_cgroup.get(path) {
                return Some(*key);
            }
            path = path.rsplit_once('/')?.0;
        }
    }

    pub(crate) fn track(&mut self, key: u32, exec: Option<&str>, pid: u32, handle: OwnedFd) {
        if let Err(error) = self.listen(&handle, PROCESS | u64::from(pid)) {
            log!(Error, "cannot wait for the end of a process", pid = pid, error = error);
            return;
        }
        self.forget_killed(pid, &handle);
        let Some(container) = self.containers.get_mut(&key) else { return };
        // It may have ended before it was found, and its exit event may have been received.
        let is_last = process::has_ended(&handle);
        let known = self.recent.iter().rev().find(|(ended, _)| is_last && *ended == pid);
        let code = known.map(|(_, code)| *code);
        let started = process::started(pid);
        let tracked = TrackedProcess { pid, handle, started, code, is_last, ended: None };
        self.recent.retain(|(ended, _)| *ended != pid);
        self.by_pid.insert(pid, (key, exec.map(str::to_owned)));
        self.sent.follow(pid, started);
        let before = match exec {
            Some(exec) => container.execs.insert(exec.to_owned(), tracked),
            None => {
                container.init_polls.end();
                self.starting.remove(&key);
                log!(Debug, "init found", container = container.id, pid = pid);
                self.shared.with(|state| state.set_init(&container.id, pid));
                container.init.replace(tracked)
            }
        };
        if let Some(before) = before.filter(|before| before.pid != pid) {
            self.by_pid.remove(&before.pid);
            self.sent.forget(before.pid);
        }
    }

    /// Receives the process events that are queued. Called before an exit is recorded.
    pub(crate) fn drain_connector(&mut self) {
        self.reap();
        let lost = |watcher: &Self| watcher.connector.as_ref().map_or(0, Connector::lost);
        let before = lost(self);
        while let Some(event) = self.connector.as_mut().and_then(Connector::next) {
            self.process_event(event);
        }
        let lost = lost(self) - before;
        if lost > 0 {
            self.runtimes.clear();
            log!(Warn, "process events were lost; some exits may lack their status", lost = lost);
        }
    }

    fn process_event(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Thread { pid, thread } => self.runtimes.add_thread(pid, thread),
            ProcessEvent::Started { pid, is_exec } => {
                self.program_started(pid, is_exec);
                // An earlier process with this pid is over. The cgroup was created before the
                // process.
                self.recent.retain(|(ended, _)| *ended != pid);
                self.drain_tree();
                if !self.starting.is_empty() && process::init_depth(pid).is_some() {
                    let key = self.hierarchy.cgroup_of(pid).and_then(|cgroup| self.container_at(&cgroup));
                    if let Some(key) = key.filter(|key| self.starting.contains(key)) {
                        self.track_found(key, pid);
                    }
                }
            }
            ProcessEvent::Exit { pid, thread, code } => {
                let Some((key, _)) = self.by_pid.get(&pid) else { return self.remember(pid, code) };
                let key = *key;
                self.thread_ended(thread, pid, code);
                if let Some(tracked) = self.tracked(pid) {
                    tracked.code = Some(code);
                    // A leader that ends before its threads does not end the process.
                    tracked.is_last = process::has_ended(&tracked.handle);
                    if tracked.ended.is_some() {
                        self.due.insert((Instant::now(), key));
                    }
                }
            }
        }
    }

    /// Keeps the wait status of a process that is not tracked.
    pub(crate) fn remember(&mut self, pid: u32, code: u32) {
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((pid, code));
    }

    pub(crate) fn tracked(&mut self, pid: u32) -> Option<&mut TrackedProcess> {
        let (key, exec) = self.by_pid.get(&pid)?;
        let container = self.containers.get_mut(key)?;
        match exec {
            Some(exec) => container.execs.get_mut(exec),
            None => container.init.as_mut(),
        }
    }

    /// A tracked process has ended.
    pub(crate) fn process_ended(&mut self, pid: u32) {
        let epoll = std::sync::Arc::clone(&self.epoll);
        let Some(tracked) = self.tracked(pid).filter(|tracked| tracked.ended.is_none()) else { return };
        tracked.ended = Some(Instant::now());
        // Its pidfd stays readable.
        epoll::delete(&*epoll, &tracked.handle).ok();
        self.drain_connector();
        if let Some((key, _)) = self.by_pid.get(&pid) {
            self.record_due_exits(*key, Instant::now());
        }
    }

    /// Records exits that are complete, or have reached the timeout of their event.
    pub(crate) fn record_due_exits(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get(&key) else { return };
        let has_no_events = self.connector.is_none() && !self.reaps;
        let init = container.init.iter().map(|tracked| (None, tracked));
        let execs = container.execs.iter().map(|(exec, tracked)| (Some(exec.clone()), tracked));
        let (mut complete, mut until) = (Vec::new(), None);
        for (exec, tracked) in execs.chain(init) {
            let Some(ended) = tracked.ended else { continue };
            if has_no_events || tracked.code.is_some() && tracked.is_last || now >= ended + EXIT_EVENT_TIMEOUT
            {
                complete.push(exec);
            } else {
                until = Some(ended + EXIT_EVENT_TIMEOUT);
            }
        }
        // The event itself makes the exit due sooner.
        self.due.extend(until.map(|at| (at, key)));
        for exec in complete {
            self.record_tracked_exit(key, exec.as_deref());
        }
    }

    fn record_tracked_exit(&mut self, key: u32, exec: Option<&str>) {
        // While the pid is known: an ended process is in no cgroup.
        self.drain_trace();
        let Some(container) = self.containers.get_mut(&key) else { return };
        let tracked = match exec {
            Some(exec) => container.execs.remove(exec),
            None => container.init.take(),
        };
        let Some(tracked) = tracked else { return };
        if exec.is_none() {
            container.ended_init = Some(tracked.pid);
        }
        self.by_pid.remove(&tracked.pid);
        self.record_exit(key, exec, Some(tracked.pid), tracked.code);
    }

    /// Records an exit, after a final read of the kill counter, so that a kill has the lower seq.
    pub(crate) fn record_exit(&mut self, key: u32, exec: Option<&str>, pid: Option<u32>, code: Option<u32>) {
        let uncounted = self.poll_kills(key);
        if let Some(pid) = pid.filter(|_| uncounted.is_some() && exec.is_none()) {
            self.count_killed_init(key, pid, code);
        }
        let Some(container) = self.containers.get(&key) else { return };
        let kills_unknown = uncounted.clone().filter(|_| container.last_kill.is_none());
        let unknown = match code {
            Some(_) => None,
            None if self.connector.is_none() && !self.reaps => Some("no process events here".to_owned()),
            // Without the init's pid its exit event cannot be found.
            None => Some(if pid.is_some() { "exit event lost" } else { "init not known" }.to_owned()),
        };
        let reasons: Vec<String> = uncounted.into_iter().chain(unknown).collect();
        let cause = pid.zip(code).and_then(|(pid, code)| self.cause_of(key, pid, code));
        let exited = Exited {
            pid,
            cause: MessageField::from_option(cause),
            is_init: pid.map(|_| exec.is_none()),
            unknown_because: reasons.join("; "),
            kills_unknown_because: kills_unknown.unwrap_or_default(),
            ..code.map(wait_status::exited).unwrap_or_default()
        };
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (status, cause) = (exited.status.map_or(-1, i64::from), exited.cause.kind);
        log!(Debug, "exit", container = container.id, status = status, cause = format_args!("{cause:?}"));
        self.shared.with(|state| state.exit(&container.id, exec, exited, now()));
        if exec.is_none() {
            container.init_polls.end();
            self.starting.remove(&key);
        }
        self.depart_if_over(key);
    }

    /// Records the exit of a container without processes: where the agent sees neither the
    /// containers' processes nor their exits, an empty cgroup is all that it can observe.
    pub(crate) fn record_due_emptied(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(emptied) = container.emptied else { return };
        if container.gone
            || container.init.is_some()
            || self.hierarchy.populated(&container.cgroup) != Some(false)
        {
            container.emptied = None;
        } else if now < emptied + EMPTY_AFTER {
            self.due.insert((emptied + EMPTY_AFTER, key));
        } else {
            container.emptied = None;
            if !self.shared.with(|state| state.has_exited(&container.id)) {
                self.record_exit(key, None, None, None);
            }
        }
    }

    /// Checks whether processes are in a container. `changed`: the kernel reported a change, so an
    /// empty cgroup had a process before.
    pub(crate) fn population_changed(&mut self, key: u32, changed: bool) {
        if self.placement != Placement::Namespaced {
            return;
        }
        let Some(container) = self.containers.get_mut(&key) else { return };
        match self.hierarchy.populated(&container.cgroup) {
            Some(true) => (container.populated, container.emptied) = (true, None),
            Some(false) if (changed || container.populated) && container.emptied.is_none() => {
                container.emptied = Some(Instant::now());
                self.due.insert((Instant::now() + EMPTY_AFTER, key));
            }
            Some(false) | None => {}
        }
    }

    /// A container's cgroup was removed.
    pub(crate) fn cgroup_gone(&mut self, key: u32) {
        self.drain_connector();
        let Some(container) = self.containers.get(&key) else { return };
        let followed = container.init.iter().chain(container.execs.values());
        let ended: Vec<u32> = followed
            .filter(|tracked| process::has_ended(&tracked.handle))
            .map(|tracked| tracked.pid)
            .collect();
        for pid in ended {
            self.process_ended(pid);
        }
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.gone = true;
        container.oom_event = None;
        let (id, cgroup) = (container.id.clone(), container.cgroup.clone());
        let init_followed = container.init.is_some();
        self.release_triggers(key);
        self.unlink(key, &id, &cgroup);
        if !init_followed && !self.shared.with(|state| state.has_exited(&id)) {
            self.record_exit(key, None, None, None);
        }
        self.depart_if_over(key);
    }

    /// Records the exits of an earlier run of a container before its next run begins.
    pub(crate) fn finish_earlier(&mut self, id: &str) {
        let earlier = self.containers.iter().find(|(_, it)| it.gone && it.id == id).map(|(key, _)| *key);
        let Some(key) = earlier else { return };
        let execs: Vec<String> =
            self.containers.get(&key).into_iter().flat_map(|it| it.execs.keys().cloned()).collect();
        for exec in execs {
            self.record_tracked_exit(key, Some(&exec));
        }
        self.record_tracked_exit(key, None);
    }

    fn depart_if_over(&mut self, key: u32) {
        let Some(container) = self.containers.get(&key) else { return };
        if container.gone && container.init.is_none() && container.execs.is_empty() {
            self.shared.with(|state| state.depart(&container.id));
            self.remove(key);
        }
    }
}
