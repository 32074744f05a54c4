//! Names kept up to a bound, by who brought them: when it is reached, whoever has most gives way, and nobody else.
//!
//! A plain queue would let one guest that makes up names for minutes push out everybody else's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::signal::ContainerId;

/// Whose name is how old.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    next: u64,
    of: HashMap<ContainerId, (Arc<str>, u64)>,
    /// Each owner's own, by age.
    owners: HashMap<Arc<str>, BTreeMap<u64, ContainerId>>,
    by_size: BTreeSet<(usize, Arc<str>)>,
}

impl Shares {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        let (of, owners, by_size) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { most, next: 0, of, owners, by_size }
    }

    /// Adds a name, the youngest of this owner's; answers which gave way for it. One that is this owner's already keeps its age.
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

    /// Forgets a name.
    pub fn remove(&mut self, id: &ContainerId) {
        let Some((owner, age)) = self.of.remove(id) else { return };
        let size = self.size(&owner);
        if let Some(own) = self.owners.get_mut(&owner) {
            own.remove(&age);
        }
        self.resize(&owner, size);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there is none.
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
    fn who_has_most_gives_way_and_its_oldest_first() {
        let mut shares = Shares::new(10);
        assert_eq!(shares.add(&id("mine"), "quiet"), None);
        for at in 0..9 {
            assert_eq!(shares.add(&id(at), "loud"), None);
        }
        assert_eq!(shares.add(&id(0), "loud"), None, "it is there already");
        for at in 9..1000 {
            assert_eq!(shares.add(&id(at), "loud"), Some(id(at - 9)));
        }
        assert_eq!(
            shares.add(&id("also-mine"), "quiet"),
            Some(id(991)),
            "the loud one makes room for others too"
        );
        assert_eq!(shares.len(), 10);
    }

    #[test]
    fn what_is_removed_or_changes_hands_leaves_nothing_behind() {
        let mut shares = Shares::new(2);
        shares.add(&id("a"), "one");
        shares.add(&id("a"), "two");
        shares.add(&id("b"), "two");
        assert_eq!(shares.add(&id("c"), "one"), Some(id("a")), "it is the other's now, which has two");
        for name in ["a", "b", "c"] {
            shares.remove(&id(name));
        }
        assert!(shares.is_empty() && shares.owners.is_empty() && shares.by_size.is_empty());
    }
}
