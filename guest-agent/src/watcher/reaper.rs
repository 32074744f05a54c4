//! Exits of processes that became children of the agent (a subreaper). Their cgroup is read before
//! they are reaped, so that no process is too short-lived to have a status.

use rustix::event::epoll;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::process;
use crate::watcher::Watcher;
use crate::zombies::{self, Zombie};

/// The command that the agent started, and the receiver of its wait status.
#[derive(Debug)]
pub(crate) struct StartedCommand {
    pub(crate) pid: u32,
    pub(crate) ended: oneshot::Sender<u32>,
}

impl Watcher {
    /// Records the exits of zombies, and reaps them.
    pub(crate) fn reap(&mut self) {
        if !self.reaps {
            return;
        }
        let mut drained_for = None;
        while let Some(dead) = zombies::next_zombie() {
            if !self.is_placed(dead.pid) {
                // It stays a zombie until its cgroup is known, which was created before it was.
                if self.draining_tree {
                    return;
                }
                if drained_for != Some(dead.pid) {
                    drained_for = Some(dead.pid);
                    self.drain_tree();
                    continue;
                }
            }
            self.record_zombie(dead);
            zombies::reap(dead.pid);
            if let Some(command) = self.command.take_if(|command| command.pid == dead.pid) {
                // Fails when the agent is stopping: the receiver is gone.
                command.ended.send(dead.code).ok();
            }
        }
    }

    /// Whether the container of a dead child is known.
    fn is_placed(&self, pid: u32) -> bool {
        self.by_pid.contains_key(&pid)
            || self.hierarchy.cgroup_of(pid).is_some_and(|it| self.container_at(&it).is_some())
    }

    fn record_zombie(&mut self, Zombie { pid, code }: Zombie) {
        if !self.by_pid.contains_key(&pid) {
            // Not seen while it lived. As a zombie it still has its cgroup and its pid namespace.
            let key = self.hierarchy.cgroup_of(pid).and_then(|cgroup| self.container_at(&cgroup));
            let awaited = key.filter(|key| {
                self.containers.get(key).is_some_and(|container| {
                    container.init.is_none() && !self.shared.with(|state| state.has_exited(&container.id))
                })
            });
            match (awaited, process::init_depth(pid), process::open(pid)) {
                (Some(key), Some(_), Some(handle)) => self.track(key, None, pid, handle),
                _ => return self.remember(pid, code),
            }
        }
        let epoll = std::sync::Arc::clone(&self.epoll);
        let Some(tracked) = self.tracked(pid) else { return };
        tracked.code = Some(code);
        tracked.is_last = true;
        if tracked.ended.is_none() {
            tracked.ended = Some(Instant::now());
            epoll::delete(&*epoll, &tracked.handle).ok();
        }
        if let Some((key, _)) = self.by_pid.get(&pid) {
            self.due.insert((Instant::now(), *key));
        }
    }
}
