//! Applies cgroup events, before process events: a process may begin and end within moments of the
//! creation of its cgroup.

use crate::cgroup_tree::CgroupChange;
use crate::watcher::{Origin, Watcher};

/// Reads of the inotify queue, more than the kernel's queue can hold: all events from before the
/// call are applied, and events that keep arriving do not prolong it.
const QUEUE: usize = 512;

impl Watcher {
    /// Applies cgroups that appeared and went, and counters that changed.
    pub(crate) fn drain_tree(&mut self) {
        // Recursion guard: the end of a container, applied here, drains the process events, which
        // call this.
        if std::mem::replace(&mut self.draining_tree, true) {
            return;
        }
        let mut changes = Vec::new();
        for _ in 0..QUEUE {
            if !self.tree.drain(&mut changes) {
                break;
            }
            changes.drain(..).for_each(|change| self.apply(change));
        }
        self.draining_tree = false;
    }

    pub(crate) fn apply(&mut self, change: CgroupChange) {
        let of = |watcher: &Self, cgroup: &str| watcher.by_cgroup.get(cgroup).copied();
        match change {
            CgroupChange::Appeared { id, cgroup } => {
                self.appear(&id, &cgroup, Origin::Now);
            }
            CgroupChange::Gone { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.cgroup_gone(key);
                }
            }
            CgroupChange::ProcessEntered { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.entered(key);
                }
            }
            CgroupChange::LimitChanged { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.read_limit(key);
                }
            }
            CgroupChange::CounterChanged { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.counter_changed(key);
                }
            }
            CgroupChange::PopulationChanged { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.poll_kills(key);
                    self.population_changed(key, true);
                }
            }
        }
    }
}
