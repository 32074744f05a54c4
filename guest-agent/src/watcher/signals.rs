//! Signals to the processes that are followed, and the senders of these signals. A sender may exit
//! at once, so its cgroup is read as soon as the signal is read.

use std::time::Duration;

use rustix::event::epoll;
use tokio::time::Instant;

use crate::cause::SIGXCPU;
use crate::cgroup::Version;
use crate::log::log;
use crate::process::{self, ProcessInfo};
use crate::seen_runtimes::{SeenRuntime, SeenRuntimes};
use crate::sent_signals::{Sender, SentSignal};
use crate::shared_state::now;
use crate::signal_trace::Window;
use crate::trace::{SignalEvent, TraceEvent, TraceLine, Traced};
use crate::watcher::{SIGNAL_TRACE, Watcher};

/// A sender is read from /proc for this long after its signal. Its start is checked too: no later
/// process is taken for it.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes of a sender's cgroup; a longer path is not kept. The kernel's limit is 4,096, and a
/// container may make cgroups below its own: the agent keeps one path for each exit.
const MAX_CGROUP: usize = 512;
/// Steps from a sender to the exec that it descends from.
const MAX_PARENTS: usize = 16;

impl Watcher {
    /// Reads the signals since the last call, unless there are too many.
    pub(crate) fn drain_signals(&mut self) {
        if self.signals_paused.is_some() {
            return;
        }
        self.read_signals(false);
        if let Some(trace) = &self.signal_trace
            && let Some(until) = trace.flooded_until()
        {
            // Its pipe stays readable.
            epoll::delete(&*self.epoll, trace).ok();
            self.signals_paused = Some(until);
        }
    }

    /// Reads signals again after there were too many.
    pub(crate) fn resume_signals(&mut self, now: Instant) {
        if self.signals_paused.take_if(|until| *until <= now).is_some() {
            self.drain_signals();
            if self.signals_paused.is_none()
                && let Some(trace) = &self.signal_trace
                && let Err(error) = self.listen(trace, SIGNAL_TRACE)
            {
                log!(Error, "cannot wait for signals", error = error);
            }
        }
    }

    /// Reads the signals since the last call. `all`: also if there are too many, since a process
    /// has ended by one.
    pub(crate) fn read_signals(&mut self, all: bool) {
        let Some(mut trace) = self.signal_trace.take() else { return };
        let now = Duration::from_nanos(now().boot_ns);
        trace.drain(all, |window, line| match line {
            TraceLine::Event(traced) => {
                if let TraceEvent::Signal(event) = traced.event {
                    self.signal_sent(window, &traced, event, now);
                }
            }
            TraceLine::Lost => self.sent.lost(),
        });
        self.signal_trace = Some(trace);
    }

    fn signal_sent(&mut self, window: &mut Window, traced: &Traced, event: SignalEvent, now: Duration) {
        if !event.is_delivered {
            return;
        }
        let is_fresh = now.saturating_sub(traced.at) < FRESH;
        let followed = self.followed_by(event.pid, traced.at).or_else(|| {
            // It may be a thread of one.
            let process =
                (is_fresh && window.may_read(false)).then(|| process::inspect(event.pid)).flatten()?;
            self.followed_by(process.pid, traced.at).filter(|_| process.started <= traced.at)
        });
        let mut sender = None;
        if event.is_by_current(traced.current) {
            let last =
                followed.and_then(|pid| self.sent.last_sender(pid, event.signal, traced.current, traced.at));
            sender = last.or_else(|| {
                let may_read = is_fresh && window.may_read(followed.is_some());
                Some(self.sender_of(traced, may_read))
            });
        }
        let is_at_cpu_limit = followed.is_some_and(|pid| {
            let is_limit = event.is_kernel_kill() && event.to_process || event.signal == SIGXCPU;
            is_limit && event.pid == traced.current && process::is_at_cpu_limit(pid, event.signal != SIGXCPU)
        });
        let is_by_oomd = followed.zip(sender.as_ref()).is_some_and(|(pid, sender)| {
            self.note_stop(pid, sender, traced.at);
            sender.is_oomd() && self.oomd_rose(pid)
        });
        let (at, current) = (traced.at, traced.current);
        let sent = SentSignal { at, current, event, sender, is_at_cpu_limit, is_by_oomd };
        match followed {
            Some(pid) => self.sent.add(pid, sent),
            None => self.sent.add_other(event.pid, sent),
        }
    }

    /// The process if it is followed, and was started when the signal was sent.
    fn followed_by(&mut self, pid: u32, at: Duration) -> Option<u32> {
        let started = self.tracked(pid)?.started?;
        (started <= at).then_some(pid)
    }

    /// Keeps when systemd began to stop a container: it sends SIGTERM, and SIGKILL much later. Once
    /// the init has ended, its runtime has systemd end the rest.
    fn note_stop(&mut self, pid: u32, sender: &Sender, at: Duration) {
        let container = self.by_pid.get(&pid).and_then(|(key, _)| self.containers.get_mut(key));
        if let Some(container) = container.filter(|_| sender.is_systemd())
            && container.init.as_ref().is_some_and(|init| init.ended.is_none())
        {
            container.stopped_at.get_or_insert(at);
        }
    }

    fn oomd_rose(&self, pid: u32) -> bool {
        let container = self.by_pid.get(&pid).and_then(|(key, _)| self.containers.get(key));
        container.is_some_and(|it| self.hierarchy.oomd_kills(&it.cgroup) > it.oomd_before)
    }

    fn sender_of(&self, traced: &Traced, may_read: bool) -> Sender {
        let thread = traced.current;
        // The cgroup first: of an ending process it may be that of v1's root.
        let read = || {
            let cgroup = self.hierarchy.cgroup_of(thread)?;
            let process = process::inspect(thread).filter(|it| it.started <= traced.at)?;
            Some((process, cgroup))
        };
        let Some((process, cgroup)) = may_read.then(read).flatten() else {
            if let Some(runtime) = self.runtimes.find(thread, &traced.comm, traced.at) {
                return sender_of_runtime(runtime);
            }
            let cgroup = self.followed_cgroup(thread);
            return Sender { pid: thread, comm: traced.comm.clone(), cgroup, exec: None };
        };
        let ProcessInfo { pid, comm, is_exiting, .. } = process;
        if let Some(runtime) = self.runtimes.find(pid, &comm, traced.at).filter(|_| is_exiting) {
            return sender_of_runtime(runtime);
        }
        let is_moved = is_exiting && self.hierarchy.version() == Version::V1 && cgroup == "/";
        let cgroup = Some(cgroup).filter(|it| !is_moved && it.len() <= MAX_CGROUP).map(Box::from);
        let cgroup = cgroup.or_else(|| self.followed_cgroup(pid));
        let exec = cgroup.as_deref().and_then(|cgroup| self.exec_of(pid, cgroup));
        Sender { pid, comm, cgroup, exec }
    }

    /// A process was forked, or runs another program: if that is a runtime, its place is kept.
    pub(crate) fn program_started(&mut self, pid: u32, is_exec: bool) {
        self.runtimes.forget(pid);
        if !is_exec || self.signal_trace.is_none() {
            return;
        }
        if !process::comm(pid).is_some_and(|comm| SeenRuntimes::is_name(&comm)) {
            return;
        }
        let cgroup = self.hierarchy.cgroup_of(pid);
        let process = process::inspect(pid).filter(|it| !it.is_exiting && SeenRuntimes::is_name(&it.comm));
        if let Some((process, cgroup)) = process.zip(cgroup).filter(|(_, cgroup)| cgroup.len() <= MAX_CGROUP)
        {
            let (comm, started, cgroup) = (process.comm, process.started, cgroup.into());
            self.runtimes.add(SeenRuntime { pid, comm, cgroup, started });
        }
    }

    /// The cgroup of the container that this process is followed for.
    fn followed_cgroup(&self, pid: u32) -> Option<Box<str>> {
        let (key, _) = self.by_pid.get(&pid)?;
        self.containers.get(key).map(|container| Box::from(&*container.cgroup))
    }

    /// The exec that process `pid` in `cgroup` is, or descends from.
    fn exec_of(&self, pid: u32, cgroup: &str) -> Option<(u32, Box<str>)> {
        let key = self.container_at(cgroup)?;
        if self.containers.get(&key)?.execs.is_empty() {
            return None;
        }
        let mut ancestor = pid;
        for _ in 0..MAX_PARENTS {
            if let Some((followed, exec)) = self.by_pid.get(&ancestor) {
                return exec.as_deref().filter(|_| *followed == key).map(|exec| (key, exec.into()));
            }
            ancestor = process::parent(ancestor).filter(|parent| *parent > 1)?;
        }
        None
    }
}

fn sender_of_runtime(runtime: &SeenRuntime) -> Sender {
    let (comm, cgroup) = (runtime.comm.clone(), Some(runtime.cgroup.clone()));
    Sender { pid: runtime.pid, comm, cgroup, exec: None }
}
