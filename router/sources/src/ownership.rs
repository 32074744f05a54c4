//! Ownership of containers: a guest may report on its own containers only.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use crate::envelope::Guest;
use coroner_core::fair_map::FairMap;
use coroner_core::mode::Mode;
use coroner_core::signal::ContainerId;

/// Owners kept. Guests may report on any number of containers, a thousand at once each: without a
/// bound the ids of a year's pods would stay. Eviction is fair: a guest could otherwise make up
/// names until another guest's ownership is forgotten, and then take over its containers.
const OWNERS: usize = 65_536;
/// The owner's name of the node's own sources; guests cannot have it.
const NODE: &str = "";

/// Containers that guests were registered with; read for every signal.
#[derive(Clone, Debug, Default)]
pub struct Registered(Arc<ArcSwap<HashMap<ContainerId, Weak<Guest>>>>);

impl Registered {
    /// The guest that was registered with this container.
    pub fn guest(&self, id: &ContainerId) -> Option<Arc<Guest>> {
        self.0.load().get(id).and_then(Weak::upgrade)
    }

    /// Adds a guest's containers, and drops those of guests that are gone.
    pub fn add(&self, guest: &Arc<Guest>) {
        let mut all = HashMap::clone(&self.0.load());
        all.retain(|_, owner| owner.strong_count() > 0);
        for id in guest.containers.iter().flatten() {
            all.insert(id.clone(), Arc::downgrade(guest));
        }
        self.0.store(Arc::new(all));
    }
}

/// Why a guest may not report on a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOwner {
    /// The guest was registered with other containers.
    #[error("it is registered with other containers")]
    NotRegistered,
    /// It belongs to another guest.
    #[error("it is guest {0}'s")]
    Another(String),
    /// It belongs to a trusted source.
    #[error("it belongs to a source of the node")]
    Node,
}

#[derive(Debug)]
enum ContainerOwner {
    Node,
    /// A shim of the node in this mode; the sandbox, where the shim knows it.
    Shim(Option<String>, Mode),
    Guest(Weak<Guest>),
}

/// The reporter of a signal.
#[derive(Clone, Copy, Debug)]
pub enum SignalReporter<'a> {
    /// A source of the node.
    Node,
    /// A shim in this mode, with the container's sandbox.
    Shim(Option<&'a str>, Mode),
    /// A guest.
    Guest(&'a Arc<Guest>),
}

/// How much a report about a container counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The reporter is the container's authority.
    Own,
    /// The container has a shim in this mode, which is the authority for its end.
    BesideShim(Mode),
}

/// The owners of all containers.
#[derive(Debug)]
pub struct Ownership {
    registered: Registered,
    owners: HashMap<ContainerId, ContainerOwner>,
    by_owner: FairMap,
}

impl Ownership {
    /// No owners yet.
    pub fn new(registered: Registered) -> Self {
        Self { registered, owners: HashMap::new(), by_owner: FairMap::new(OWNERS) }
    }

    /// Checks whether the reporter may report on this container; the first reporter becomes its
    /// owner. A guest also owns a shim's containers if its name is their sandbox's, or if it was
    /// registered with them.
    pub fn check(&mut self, id: &ContainerId, reporter: SignalReporter<'_>) -> Result<Authority, NotOwner> {
        let beside = match self.owners.get(id) {
            Some(ContainerOwner::Shim(_, mode)) => Authority::BesideShim(*mode),
            Some(ContainerOwner::Node | ContainerOwner::Guest(_)) | None => Authority::Own,
        };
        let guest = match reporter {
            SignalReporter::Shim(sandbox, mode) => {
                self.own(id, NODE, ContainerOwner::Shim(sandbox.map(str::to_owned), mode));
                return Ok(Authority::Own);
            }
            SignalReporter::Node => {
                if beside == Authority::Own {
                    self.own(id, NODE, ContainerOwner::Node);
                }
                return Ok(beside);
            }
            SignalReporter::Guest(guest) => guest,
        };
        if let Some(own) = &guest.containers {
            if !own.contains(id) {
                return Err(NotOwner::NotRegistered);
            }
            if beside == Authority::Own {
                self.own(id, &guest.name, ContainerOwner::Guest(Arc::downgrade(guest)));
            }
            return Ok(beside);
        }
        if let Some(owner) = self.registered.guest(id) {
            return Err(NotOwner::Another(owner.name.clone()));
        }
        match self.owners.get(id) {
            Some(ContainerOwner::Shim(Some(sandbox), _)) if *sandbox == guest.name => return Ok(beside),
            Some(ContainerOwner::Node | ContainerOwner::Shim(..)) => return Err(NotOwner::Node),
            Some(ContainerOwner::Guest(owner)) => {
                if let Some(owner) = owner.upgrade() {
                    let same = Arc::ptr_eq(&owner, guest);
                    return if same { Ok(beside) } else { Err(NotOwner::Another(owner.name.clone())) };
                }
            }
            None => {}
        }
        self.own(id, &guest.name, ContainerOwner::Guest(Arc::downgrade(guest)));
        Ok(Authority::Own)
    }

    fn own(&mut self, id: &ContainerId, name: &str, owner: ContainerOwner) {
        self.owners.insert(id.clone(), owner);
        if let Some(gone) = self.by_owner.add(id, name) {
            self.owners.remove(&gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::try_from(text.to_owned()).unwrap()
    }

    fn guest(name: &str, containers: Option<&[&str]>) -> Arc<Guest> {
        let containers = containers.map(|ids| ids.iter().map(|it| id(it)).collect());
        Arc::new(Guest { name: name.to_owned(), containers, counts: Arc::default() })
    }

    #[test]
    fn first_reporter_owns_container_until_gone() {
        let mut ownership = Ownership::new(Registered::default());
        let (one, two) = (guest("one", None), guest("two", None));
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&one)), Ok(Authority::Own));
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&one)), Ok(Authority::Own));
        assert_eq!(
            ownership.check(&id("c1"), SignalReporter::Guest(&two)),
            Err(NotOwner::Another("one".to_owned()))
        );
        drop(one);
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&two)), Ok(Authority::Own));
    }

    #[test]
    fn container_registered_belongs_to_its_guest() {
        let registered = Registered::default();
        let mut ownership = Ownership::new(registered.clone());
        let (bad, good) = (guest("bad", None), guest("good", Some(&["c1"])));
        assert_eq!(
            ownership.check(&id("c1"), SignalReporter::Guest(&bad)),
            Ok(Authority::Own),
            "no other owner yet"
        );
        registered.add(&good);
        assert_eq!(
            ownership.check(&id("c1"), SignalReporter::Guest(&bad)),
            Err(NotOwner::Another("good".to_owned()))
        );
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&good)), Ok(Authority::Own));
        assert_eq!(ownership.check(&id("c2"), SignalReporter::Guest(&good)), Err(NotOwner::NotRegistered));
        assert_eq!(ownership.check(&id("c2"), SignalReporter::Guest(&bad)), Ok(Authority::Own));
    }

    #[test]
    fn node_owns_its_containers_against_guests() {
        let mut ownership = Ownership::new(Registered::default());
        let bad = guest("bad", None);
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&bad)), Ok(Authority::Own));
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Node), Ok(Authority::Own));
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&bad)), Err(NotOwner::Node));
    }

    #[test]
    fn shim_container_shared_with_guest_of_its_sandbox() {
        let registered = Registered::default();
        let mut ownership = Ownership::new(registered.clone());
        let (own, other, named) = (guest("s1", None), guest("s2", None), guest("vm", Some(&["c2"])));
        registered.add(&named);
        for container in ["c1", "c2"] {
            assert_eq!(
                ownership.check(&id(container), SignalReporter::Shim(Some("s1"), Mode::Proxy)),
                Ok(Authority::Own)
            );
        }
        assert_eq!(
            ownership.check(&id("c1"), SignalReporter::Guest(&own)),
            Ok(Authority::BesideShim(Mode::Proxy))
        );
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Guest(&other)), Err(NotOwner::Node));
        assert_eq!(
            ownership.check(&id("c2"), SignalReporter::Guest(&named)),
            Ok(Authority::BesideShim(Mode::Proxy))
        );
        assert_eq!(
            ownership.check(&id("c2"), SignalReporter::Guest(&own)),
            Err(NotOwner::Another("vm".to_owned()))
        );
        assert_eq!(ownership.check(&id("c1"), SignalReporter::Node), Ok(Authority::BesideShim(Mode::Proxy)));
        assert_eq!(ownership.check(&id("c3"), SignalReporter::Shim(None, Mode::Wrapped)), Ok(Authority::Own));
        assert_eq!(ownership.check(&id("c3"), SignalReporter::Guest(&own)), Err(NotOwner::Node));
        // It reported before the shim did, and lost the container to it.
        assert_eq!(ownership.check(&id("c4"), SignalReporter::Guest(&other)), Ok(Authority::Own));
        assert_eq!(
            ownership.check(&id("c4"), SignalReporter::Shim(Some("s1"), Mode::Proxy)),
            Ok(Authority::Own)
        );
        assert_eq!(ownership.check(&id("c4"), SignalReporter::Guest(&other)), Err(NotOwner::Node));
    }

    #[test]
    fn owners_bounded_and_eviction_fair() {
        let mut ownership = Ownership::new(Registered::default());
        let (good, bad) = (guest("good", None), guest("bad", None));
        ownership.check(&id("mine"), SignalReporter::Guest(&good)).unwrap();
        ownership.check(&id("the-nodes"), SignalReporter::Node).unwrap();
        for at in 0..OWNERS + 100 {
            ownership.check(&id(&format!("c{at}")), SignalReporter::Guest(&bad)).unwrap();
        }
        assert_eq!((ownership.owners.len(), ownership.by_owner.len()), (OWNERS, OWNERS));
        assert_eq!(
            ownership.check(&id("mine"), SignalReporter::Guest(&bad)),
            Err(NotOwner::Another("good".to_owned()))
        );
        assert_eq!(ownership.check(&id("the-nodes"), SignalReporter::Guest(&bad)), Err(NotOwner::Node));
    }
}
