//! A bounded set of container ids with fair eviction: at the bound, the owner with the most entries
//! loses its oldest.
//!
//! With a plain queue one guest that makes up names for minutes could evict the entries of all
//! others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::signal::ContainerId;

/// Container ids with their owner and age.
#[derive(Debug)]
pub struct FairMap {
    most: usize,
    next: u64,
    of: HashMap<ContainerId, (Arc<str>, u64)>,
    /// Each owner's ids by age.
    owners: HashMap<Arc<str>, BTreeMap<u64, ContainerId>>,
    by_size: BTreeSet<(usize, Arc<str>)>,
}

impl FairMap {
    /// At most `most` entries.
    pub fn new(most: usize) -> Self {
        let (of, owners, by_size) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { most, next: 0, of, owners, by_size }
    }

    /// Adds an id as the youngest of its owner and returns the evicted one. An id that its owner
    /// has already keeps its age.
    pub fn add(&mut self, id: &ContainerId, owner: &str) -> Option<ContainerId> {
        match self.of.get(id) {
            Some((before, _)) if **before == *owner => return None,
            Some(_) => self.remove(id),
            None => {}
        }
        let owner =
            self.owners.get_key_value(owner).map_or_else(|| Arc::from(owner), |(it, _)| Arc::clone(it));
        let (age, size) = (self.next, self.size(&owner));
        self.next += 1;
        self.of.insert(id.clone(), (Arc::clone(&owner), age));
        self.owners.entry(Arc::clone(&owner)).or_default().insert(age, id.clone());
        self.resize(&owner, size);
        if self.of.len() <= self.most {
            return None;
        }
        let (_, largest) = self.by_size.last()?;
        let (_, oldest) = self.owners.get(largest)?.first_key_value()?;
        let oldest = oldest.clone();
        self.remove(&oldest);
        Some(oldest)
    }

    /// Removes an id.
    pub fn remove(&mut self, id: &ContainerId) {
        let Some((owner, age)) = self.of.remove(id) else { return };
        let size = self.size(&owner);
        if let Some(own) = self.owners.get_mut(&owner) {
            own.remove(&age);
        }
        self.resize(&owner, size);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    fn size(&self, owner: &str) -> usize {
        self.owners.get(owner).map_or(0, BTreeMap::len)
    }

    fn resize(&mut self, owner: &Arc<str>, before: usize) {
        self.by_size.remove(&(before, Arc::clone(owner)));
        match self.size(owner) {
            0 => drop(self.owners.remove(owner)),
            size => drop(self.by_size.insert((size, Arc::clone(owner)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: impl ToString) -> ContainerId {
        ContainerId::try_from(text.to_string()).unwrap()
    }

    #[test]
    fn largest_owner_loses_its_oldest_entry() {
        let mut by_owner = FairMap::new(10);
        assert_eq!(by_owner.add(&id("mine"), "quiet"), None);
        for at in 0..9 {
            assert_eq!(by_owner.add(&id(at), "loud"), None);
        }
        assert_eq!(by_owner.add(&id(0), "loud"), None, "it is there already");
        for at in 9..1000 {
            assert_eq!(by_owner.add(&id(at), "loud"), Some(id(at - 9)));
        }
        assert_eq!(
            by_owner.add(&id("also-mine"), "quiet"),
            Some(id(991)),
            "the loud one makes room for others too"
        );
        assert_eq!(by_owner.len(), 10);
    }

    #[test]
    fn entry_removed_or_moved_leaves_no_rest() {
        let mut by_owner = FairMap::new(2);
        by_owner.add(&id("a"), "one");
        by_owner.add(&id("a"), "two");
        by_owner.add(&id("b"), "two");
        assert_eq!(by_owner.add(&id("c"), "one"), Some(id("a")), "it is the other's now, which has two");
        for name in ["a", "b", "c"] {
            by_owner.remove(&id(name));
        }
        assert!(by_owner.is_empty() && by_owner.owners.is_empty() && by_owner.by_size.is_empty());
    }
}
