//! Exits of processes that became this process's children: what they were in is read before they are reaped, so that no life
//! is too short to have a status.

use rustix::event::epoll;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::child::{self, Dead};
use crate::process;
use crate::watcher::Watcher;

/// The one process that this one itself started, and who waits for its end.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) pid: u32,
    pub(crate) ended: oneshot::Sender<u32>,
}

impl Watcher {
    /// Takes in the dead, and reaps them.
    pub(crate) fn reap(&mut self) {
        if !self.reaps {
            return;
        }
        let mut looked_for = None;
        while let Some(dead) = child::next_dead() {
            if !self.places(dead.pid) {
                // Dead it waits until its folder is known, which was made before it was.
                if self.learning {
                    return;
                }
                if looked_for != Some(dead.pid) {
                    looked_for = Some(dead.pid);
                    self.learn();
                    continue;
                }
            }
            self.note(dead);
            child::reap(dead.pid);
            if let Some(command) = self.command.take_if(|command| command.pid == dead.pid) {
                // Nobody waits for it any more: the agent is stopping.
                command.ended.send(dead.code).ok();
            }
        }
    }

    /// Whether it is known of what container a dead child was.
    fn places(&self, pid: u32) -> bool {
        self.by_pid.contains_key(&pid)
            || process::cgroup(pid, &self.hierarchy).is_some_and(|it| self.container_at(&it).is_some())
    }

    fn note(&mut self, Dead { pid, code }: Dead) {
        if !self.by_pid.contains_key(&pid) {
            // Not seen while it lived. Dead, it still tells what it was.
            let key = process::cgroup(pid, &self.hierarchy).and_then(|cgroup| self.container_at(&cgroup));
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
