//! The inventory of an agent's running containers, so that their loss can be reported when the
//! guest is gone.

use std::collections::{HashMap, HashSet};

use coroner_proto::agent;

use super::rate_limits;

/// Containers remembered per guest, including those that ended.
const REMEMBERED: usize = 2 * rate_limits::CONTAINERS;
/// Containers of one snapshot at most: more than any agent has, on a node or in a guest.
const SNAPSHOT: usize = 16 << 10;
const GUEST_SNAPSHOT: usize = 2 * REMEMBERED;

/// State of one container as reported in this stream.
#[derive(Debug, Default)]
pub(super) struct TrackedContainer {
    /// Its OOM kill counter; `None` until reported.
    pub(super) kills_total: Option<u64>,
    /// It was seen running, or its kill or exit was reported. Pressure does not count: it is also
    /// reported for containers that ended.
    pub(super) lived: bool,
    pub(super) exited: bool,
    /// `guest-lost` was reported for it: later signals are refused.
    pub(super) lost: bool,
}

impl TrackedContainer {
    fn running(kills_total: Option<u64>) -> Self {
        Self { kills_total, lived: true, ..Self::default() }
    }

    /// Whether its end is still unreported.
    fn is_running(&self) -> bool {
        self.lived && !self.exited && !self.lost
    }
}

/// The containers of one stream, by id.
#[derive(Debug, Default)]
pub(super) struct Inventory(HashMap<String, TrackedContainer>);

impl Inventory {
    /// Containers that were running when the router ran last, and their OOM kill counters.
    pub(super) fn recovered(running: &HashMap<String, Option<u64>>) -> Self {
        let mut inventory = Self::default();
        for (id, kills_total) in running {
            inventory.add(id.clone(), *kills_total);
        }
        inventory
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn get(&self, id: &str) -> Option<&TrackedContainer> {
        self.0.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut TrackedContainer> {
        self.0.get_mut(id)
    }

    pub(super) fn entry(&mut self, id: String) -> &mut TrackedContainer {
        self.0.entry(id).or_default()
    }

    /// Adds a running container.
    pub(super) fn add(&mut self, id: String, kills_total: Option<u64>) {
        self.0.insert(id, TrackedContainer::running(kills_total));
    }

    /// Adds a running container, unless it is tracked.
    pub(super) fn add_if_unknown(&mut self, id: String, kills_total: Option<u64>) {
        self.0.entry(id).or_insert(TrackedContainer::running(kills_total));
    }

    /// Drops the containers that the agent no longer knows.
    pub(super) fn retain(&mut self, containers: &[agent::Container]) {
        let present: HashSet<&str> = containers.iter().map(|it| it.id.as_str()).collect();
        self.0.retain(|id, _| present.contains(id.as_str()));
    }

    /// Running containers and their OOM kill counters.
    pub(super) fn running(&self) -> HashMap<String, Option<u64>> {
        let running = self.0.iter().filter(|(_, it)| it.is_running());
        running.map(|(id, it)| (id.clone(), it.kills_total)).collect()
    }

    /// Number of containers that are not known to have ended.
    pub(super) fn running_count(&self) -> usize {
        self.0.values().filter(|it| !it.exited && !it.lost).count()
    }

    /// How many more containers of a guest can be remembered.
    pub(super) fn room(&mut self) -> usize {
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, it| !it.exited);
        }
        let room = REMEMBERED.saturating_sub(self.0.len());
        room.min(rate_limits::CONTAINERS.saturating_sub(self.running_count()))
    }
}

/// Containers of one snapshot at most.
pub(super) fn snapshot_limit(is_guest: bool) -> usize {
    if is_guest { GUEST_SNAPSHOT } else { SNAPSHOT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovered_containers_are_running_until_exit_or_loss() {
        let running: HashMap<String, Option<u64>> = ["a", "b", "c"].map(|id| (id.to_owned(), Some(2))).into();
        let mut inventory = Inventory::recovered(&running);
        assert_eq!(inventory.running(), running);
        inventory.entry("a".to_owned()).exited = true;
        inventory.entry("b".to_owned()).lost = true;
        // Pressure alone does not show that a container runs.
        inventory.entry("d".to_owned());
        assert_eq!(inventory.running().into_keys().collect::<Vec<_>>(), ["c"]);
    }
}
