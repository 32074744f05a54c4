//! What the tree tells, taken in before what processes tell: a process may begin and end within a moment of its folder.

use crate::discover::Change;
use crate::watcher::{Origin, Watcher};

/// More parts than the kernel queues: what was told before this began is all taken in, and what is told without a pause meanwhile is not waited for.
const QUEUE: usize = 512;

impl Watcher {
    /// Takes in the folders that came and went, and the counters that changed.
    pub(crate) fn learn(&mut self) {
        // A container's end, which is told in here, asks for what processes told meanwhile.
        if std::mem::replace(&mut self.learning, true) {
            return;
        }
        let mut changes = Vec::new();
        for _ in 0..QUEUE {
            if !self.tree.drain(&mut changes) {
                break;
            }
            changes.drain(..).for_each(|change| self.apply(change));
        }
        self.learning = false;
    }

    pub(crate) fn apply(&mut self, change: Change) {
        let of = |watcher: &Self, cgroup: &str| watcher.by_cgroup.get(cgroup).copied();
        match change {
            Change::Appeared { id, cgroup } => {
                self.appear(&id, &cgroup, Origin::Now);
            }
            Change::Gone { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.cgroup_gone(key);
                }
            }
            Change::Entered { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.entered(key);
                }
            }
            Change::Limited { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.read_limit(key);
                }
            }
            Change::Counted { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.counter_changed(key);
                }
            }
            Change::Peopled { cgroup } => {
                if let Some(key) = of(self, &cgroup) {
                    self.look_at_kills(key);
                    self.population_changed(key, true);
                }
            }
        }
    }
}
