//! Exits: a handle on each process says that it ended, the kernel's process events say how.
//!
//! A container's init is the process in its cgroup that is pid 1 of an inner pid namespace. Where a container shares
//! a pid namespace (the host's, or its pod's) no process looks like its init, and none is guessed: the only process in
//! a cgroup may well be the runtime's own, on its way out. Such a container's exit is told when somebody named
//! its init by Watch, else, with nothing known of it, when its cgroup goes.

use std::os::fd::OwnedFd;
use std::time::Duration;

use coroner_proto::agent::Exited;
use rustix::event::epoll;
use tokio::time::Instant;

use crate::connector::{Connector, Event};
use crate::log::log;
use crate::placement::Placement;
use crate::process;
use crate::shared::now;
use crate::watcher::{PROCESS, Watcher};

/// The kernel wakes who waits for a process's end, and then queues its process event: exit_notify and
/// proc_exit_connector in do_exit. The dying process may not run in between while a hundred others do: 100 ms were too few for a storm
/// of 50 containers on one processor. That an event never comes, because the kernel had no room for it, is rare, and told as late as this.
const GRACE: Duration = Duration::from_secs(2);
/// A cgroup without processes is a container's end after this long: a runtime may try it out before the container begins.
const EMPTIED: Duration = Duration::from_millis(100);
/// Ends kept of processes that nobody has named yet: a shim may name its init after it ended.
const MAX_RECENT: usize = 128;
/// Execs followed in one container, and processes in all. Each holds a descriptor; who may ask could ask for all of them.
pub(crate) const MAX_EXECS: usize = 64;
pub(crate) const MAX_PROCESSES: usize = 16 << 10;

/// A process whose end will be told.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) pid: u32,
    pub(crate) handle: OwnedFd,
    /// What wait(2) would say, by the latest event of one of its threads.
    pub(crate) code: Option<u32>,
    /// That event came when the whole process had ended.
    pub(crate) is_last: bool,
    pub(crate) ended: Option<Instant>,
}

impl Watcher {
    /// A process entered a container's cgroup: is it the init?
    pub(crate) fn entered(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.init.is_some() || self.shared.with(|state| state.has_exited(&container.id)) {
            return;
        }
        self.starting.insert(key);
        if let Some(at) = container.init_looks.begin(Instant::now()) {
            self.due.insert((at, key));
        }
        self.look_for_init(key);
    }

    pub(crate) fn tend_init(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(next) = container.init_looks.due(now) else { return };
        if let Some(at) = next {
            self.due.insert((at, key));
        }
        self.look_for_init(key);
        if next.is_none() {
            // No process here looks like an init: not every new process of the machine is looked at for ever.
            self.starting.remove(&key);
        }
    }

    fn look_for_init(&mut self, key: u32) {
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

    /// Follows an init that was found, unless its number went to another process meanwhile.
    fn track_found(&mut self, key: u32, pid: u32) {
        let Some(handle) = process::open(pid) else { return };
        let there = process::cgroup(pid, &self.hierarchy);
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
        let Some(container) = self.containers.get_mut(&key) else { return };
        // It may have ended before it was looked at, and that may have been heard.
        let is_last = process::has_ended(&handle);
        let heard = self.recent.iter().rev().find(|(ended, _)| is_last && *ended == pid);
        let code = heard.map(|(_, code)| *code);
        let tracked = Tracked { pid, handle, code, is_last, ended: None };
        self.recent.retain(|(ended, _)| *ended != pid);
        self.by_pid.insert(pid, (key, exec.map(str::to_owned)));
        let before = match exec {
            Some(exec) => container.execs.insert(exec.to_owned(), tracked),
            None => {
                container.init_looks.end();
                self.starting.remove(&key);
                log!(Debug, "init found", container = container.id, pid = pid);
                self.shared.with(|state| state.set_init(&container.id, pid));
                container.init.replace(tracked)
            }
        };
        if let Some(before) = before.filter(|before| before.pid != pid) {
            self.by_pid.remove(&before.pid);
        }
    }

    /// Takes in how processes ended. Called before anything is told of an end.
    pub(crate) fn drain_connector(&mut self) {
        self.reap();
        let lost = |watcher: &Self| watcher.connector.as_ref().map_or(0, Connector::lost);
        let before = lost(self);
        while let Some(event) = self.connector.as_mut().and_then(Connector::next) {
            self.process_event(event);
        }
        let lost = lost(self) - before;
        if lost > 0 {
            log!(Warn, "process events were lost; some exits may lack their status", lost = lost);
        }
    }

    fn process_event(&mut self, event: Event) {
        match event {
            Event::Began { pid } => {
                // Another that had its number is over. Its folder was made before it was.
                self.recent.retain(|(ended, _)| *ended != pid);
                self.learn();
                if !self.starting.is_empty() && process::init_depth(pid).is_some() {
                    let key =
                        process::cgroup(pid, &self.hierarchy).and_then(|cgroup| self.container_at(&cgroup));
                    if let Some(key) = key.filter(|key| self.starting.contains(key)) {
                        self.track_found(key, pid);
                    }
                }
            }
            Event::Exit { pid, code } => {
                let Some((key, _)) = self.by_pid.get(&pid) else { return self.remember(pid, code) };
                let key = *key;
                if let Some(tracked) = self.tracked(pid) {
                    tracked.code = Some(code);
                    // A leader that ends before its threads is no end of the process.
                    tracked.is_last = process::has_ended(&tracked.handle);
                    if tracked.ended.is_some() {
                        self.due.insert((Instant::now(), key));
                    }
                }
            }
        }
    }

    /// Keeps how a process ended that nobody has named yet.
    pub(crate) fn remember(&mut self, pid: u32, code: u32) {
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((pid, code));
    }

    pub(crate) fn tracked(&mut self, pid: u32) -> Option<&mut Tracked> {
        let (key, exec) = self.by_pid.get(&pid)?;
        let container = self.containers.get_mut(key)?;
        match exec {
            Some(exec) => container.execs.get_mut(exec),
            None => container.init.as_mut(),
        }
    }

    /// A process being followed has ended.
    pub(crate) fn process_ended(&mut self, pid: u32) {
        let epoll = std::sync::Arc::clone(&self.epoll);
        let Some(tracked) = self.tracked(pid).filter(|tracked| tracked.ended.is_none()) else { return };
        tracked.ended = Some(Instant::now());
        // It stays readable for good.
        epoll::delete(&*epoll, &tracked.handle).ok();
        self.drain_connector();
        if let Some((key, _)) = self.by_pid.get(&pid) {
            self.tend_exits(*key, Instant::now());
        }
    }

    /// Tells the ends that are complete, or have waited for the rest long enough.
    pub(crate) fn tend_exits(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get(&key) else { return };
        let deaf = self.connector.is_none() && !self.reaps;
        let init = container.init.iter().map(|tracked| (None, tracked));
        let execs = container.execs.iter().map(|(exec, tracked)| (Some(exec.clone()), tracked));
        let (mut complete, mut until) = (Vec::new(), None);
        for (exec, tracked) in execs.chain(init) {
            let Some(ended) = tracked.ended else { continue };
            if deaf || tracked.code.is_some() && tracked.is_last || now >= ended + GRACE {
                complete.push(exec);
            } else {
                until = Some(ended + GRACE);
            }
        }
        // The event itself is heard of sooner.
        self.due.extend(until.map(|at| (at, key)));
        for exec in complete {
            self.tell_tracked(key, exec.as_deref());
        }
    }

    fn tell_tracked(&mut self, key: u32, exec: Option<&str>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let tracked = match exec {
            Some(exec) => container.execs.remove(exec),
            None => container.init.take(),
        };
        let Some(tracked) = tracked else { return };
        self.by_pid.remove(&tracked.pid);
        self.tell_exit(key, exec, Some(tracked.pid), tracked.code);
    }

    /// Tells an exit, after a last look at the kills, so that a kill has the lower number.
    pub(crate) fn tell_exit(&mut self, key: u32, exec: Option<&str>, pid: Option<u32>, code: Option<u32>) {
        let uncounted = self.look_at_kills(key);
        let Some(container) = self.containers.get_mut(&key) else { return };
        let unknown = match code {
            Some(_) => None,
            None if self.connector.is_none() && !self.reaps => Some("no process events here".to_owned()),
            // What killed the last process of a cgroup is lost with who it was.
            None => Some(if pid.is_some() { "exit event lost" } else { "init not known" }.to_owned()),
        };
        let reasons: Vec<String> = uncounted.into_iter().chain(unknown).collect();
        let exited = Exited {
            pid,
            is_init: pid.map(|_| exec.is_none()),
            unknown_because: reasons.join("; "),
            ..code.map(status).unwrap_or_default()
        };
        log!(Debug, "exit", container = container.id, status = exited.status.map_or(-1, i64::from));
        self.shared.with(|state| state.exit(&container.id, exec, exited, now()));
        if exec.is_none() {
            container.init_looks.end();
            self.starting.remove(&key);
        }
        self.depart_if_over(key);
    }

    /// No process is in a container any more, and nobody else will say how it ended: where this process sees neither the containers'
    /// processes nor their ends, that is all there is to tell.
    pub(crate) fn tend_emptied(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(emptied) = container.emptied else { return };
        if container.gone
            || container.init.is_some()
            || self.hierarchy.populated(&container.cgroup) != Some(false)
        {
            container.emptied = None;
        } else if now < emptied + EMPTIED {
            self.due.insert((emptied + EMPTIED, key));
        } else {
            container.emptied = None;
            if !self.shared.with(|state| state.has_exited(&container.id)) {
                self.tell_exit(key, None, None, None);
            }
        }
    }

    /// Looks whether processes are in a container. `changed`: the kernel says that this changed, so that one which is empty was not always so.
    pub(crate) fn population_changed(&mut self, key: u32, changed: bool) {
        if self.placement != Placement::Namespaced {
            return;
        }
        let Some(container) = self.containers.get_mut(&key) else { return };
        match self.hierarchy.populated(&container.cgroup) {
            Some(true) => (container.populated, container.emptied) = (true, None),
            Some(false) if (changed || container.populated) && container.emptied.is_none() => {
                container.emptied = Some(Instant::now());
                self.due.insert((Instant::now() + EMPTIED, key));
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
        self.disarm(key);
        self.unlink(key, &id, &cgroup);
        if !init_followed && !self.shared.with(|state| state.has_exited(&id)) {
            self.tell_exit(key, None, None, None);
        }
        self.depart_if_over(key);
    }

    /// An earlier run of a container that comes again is told to its end first.
    pub(crate) fn finish_earlier(&mut self, id: &str) {
        let earlier = self.containers.iter().find(|(_, it)| it.gone && it.id == id).map(|(key, _)| *key);
        let Some(key) = earlier else { return };
        let execs: Vec<String> =
            self.containers.get(&key).into_iter().flat_map(|it| it.execs.keys().cloned()).collect();
        for exec in execs {
            self.tell_tracked(key, Some(&exec));
        }
        self.tell_tracked(key, None);
    }

    fn depart_if_over(&mut self, key: u32) {
        let Some(container) = self.containers.get(&key) else { return };
        if container.gone && container.init.is_none() && container.execs.is_empty() {
            self.shared.with(|state| state.depart(&container.id));
            self.remove(key);
        }
    }
}

/// wait(2)'s word: the exit code above, the signal in the low seven bits, then whether a core was written.
fn status(code: u32) -> Exited {
    let signal = code & 0x7f;
    match signal {
        0 => Exited { status: Some(code >> 8 & 0xff), ..Exited::default() },
        _ => Exited {
            status: Some(128 + signal),
            signal: Some(signal),
            core: Some(code & 0x80 != 0),
            ..Exited::default()
        },
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_told_as_containerd_does() {
        let check = |code: u32, status: u32, signal: Option<u32>, core: Option<bool>| {
            let told = super::status(code);
            assert_eq!((told.status, told.signal, told.core), (Some(status), signal, core), "{code:#x}");
        };
        check(0, 0, None, None);
        check(7 << 8, 7, None, None);
        check(255 << 8, 255, None, None);
        check(9, 137, Some(9), Some(false));
        check(15, 143, Some(15), Some(false));
        check(11 | 0x80, 139, Some(11), Some(true));
    }
}
