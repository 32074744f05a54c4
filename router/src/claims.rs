//! Whose a container is: a guest speaks for its own, and for nobody else's.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use crate::arrival::Guest;
use crate::config::Mode;
use crate::shares::Shares;
use crate::signal::ContainerId;

/// Claims kept. Guests may name as many containers as they like, a thousand at once each: without a bound the names of a year's pods would stay. Past it
/// the guest that has most gives way: a guest could otherwise make up names until another's claims are forgotten, and then have its containers.
const CLAIMS: usize = 65_536;
/// Whose share the claims of the node are; no guest is named so.
const NODE: &str = "";

/// Containers that guests were registered with, by who registers them; read at every signal.
#[derive(Clone, Debug, Default)]
pub struct Registered(Arc<ArcSwap<HashMap<ContainerId, Weak<Guest>>>>);

impl Registered {
    /// Whose it is.
    pub fn guest(&self, id: &ContainerId) -> Option<Arc<Guest>> {
        self.0.load().get(id).and_then(Weak::upgrade)
    }

    /// Adds a guest's containers, and forgets those of guests that are gone.
    pub fn add(&self, guest: &Arc<Guest>) {
        let mut all = HashMap::clone(&self.0.load());
        all.retain(|_, owner| owner.strong_count() > 0);
        for id in guest.containers.iter().flatten() {
            all.insert(id.clone(), Arc::downgrade(guest));
        }
        self.0.store(Arc::new(all));
    }
}

/// Why a guest may not speak for a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It was registered with others.
    #[error("it is registered with other containers")]
    NotRegistered,
    /// Another guest has it.
    #[error("it is guest {0}'s")]
    Another(String),
    /// A trusted source has it.
    #[error("it is not a guest's: a source of the node speaks for it")]
    Node,
}

#[derive(Debug)]
enum Owner {
    Node,
    /// A shim of the node in this mode, which knows the sandbox.
    Shim(Option<String>, Mode),
    Guest(Weak<Guest>),
}

/// Who speaks of a container.
#[derive(Clone, Copy, Debug)]
pub enum Speaker<'a> {
    /// A source of the node.
    Node,
    /// A shim in this mode, of a container in this sandbox.
    Shim(Option<&'a str>, Mode),
    /// A guest.
    Guest(&'a Arc<Guest>),
}

/// How a word about a container is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody knows better.
    Own,
    /// Its end is for its shim to tell, whose mode this is.
    BesideShim(Mode),
}

/// The claims of all sources.
#[derive(Debug)]
pub struct Claims {
    registered: Registered,
    owners: HashMap<ContainerId, Owner>,
    shares: Shares,
}

impl Claims {
    /// None yet.
    pub fn new(registered: Registered) -> Self {
        Self { registered, owners: HashMap::new(), shares: Shares::new(CLAIMS) }
    }

    /// Whether this speaker speaks for this container, and how it counts; the first to do so has it. A shim's containers are the guest's too whose name is
    /// their sandbox's, or that was registered with them.
    pub fn check(&mut self, id: &ContainerId, speaker: Speaker<'_>) -> Result<Standing, Foreign> {
        let beside = match self.owners.get(id) {
            Some(Owner::Shim(_, mode)) => Standing::BesideShim(*mode),
            Some(Owner::Node | Owner::Guest(_)) | None => Standing::Own,
        };
        let guest = match speaker {
            Speaker::Shim(sandbox, mode) => {
                self.own(id, NODE, Owner::Shim(sandbox.map(str::to_owned), mode));
                return Ok(Standing::Own);
            }
            Speaker::Node => {
                if beside == Standing::Own {
                    self.own(id, NODE, Owner::Node);
                }
                return Ok(beside);
            }
            Speaker::Guest(guest) => guest,
        };
        if let Some(own) = &guest.containers {
            if !own.contains(id) {
                return Err(Foreign::NotRegistered);
            }
            if beside == Standing::Own {
                self.own(id, &guest.name, Owner::Guest(Arc::downgrade(guest)));
            }
            return Ok(beside);
        }
        if let Some(owner) = self.registered.guest(id) {
            return Err(Foreign::Another(owner.name.clone()));
        }
        match self.owners.get(id) {
            Some(Owner::Shim(Some(sandbox), _)) if *sandbox == guest.name => return Ok(beside),
            Some(Owner::Node | Owner::Shim(..)) => return Err(Foreign::Node),
            Some(Owner::Guest(owner)) => {
                if let Some(owner) = owner.upgrade() {
                    let same = Arc::ptr_eq(&owner, guest);
                    return if same { Ok(beside) } else { Err(Foreign::Another(owner.name.clone())) };
                }
            }
            None => {}
        }
        self.own(id, &guest.name, Owner::Guest(Arc::downgrade(guest)));
        Ok(Standing::Own)
    }

    fn own(&mut self, id: &ContainerId, name: &str, owner: Owner) {
        self.owners.insert(id.clone(), owner);
        if let Some(gone) = self.shares.add(id, name) {
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
    fn the_first_to_speak_of_a_container_has_it_until_it_is_gone() {
        let mut claims = Claims::new(Registered::default());
        let (one, two) = (guest("one", None), guest("two", None));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&one)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&one)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&two)), Err(Foreign::Another("one".to_owned())));
        drop(one);
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&two)), Ok(Standing::Own));
    }

    #[test]
    fn a_registered_container_is_its_guests_whoever_speaks_first() {
        let registered = Registered::default();
        let mut claims = Claims::new(registered.clone());
        let (bad, good) = (guest("bad", None), guest("good", Some(&["c1"])));
        assert_eq!(
            claims.check(&id("c1"), Speaker::Guest(&bad)),
            Ok(Standing::Own),
            "nobody knows better yet"
        );
        registered.add(&good);
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&bad)), Err(Foreign::Another("good".to_owned())));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&good)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c2"), Speaker::Guest(&good)), Err(Foreign::NotRegistered));
        assert_eq!(claims.check(&id("c2"), Speaker::Guest(&bad)), Ok(Standing::Own));
    }

    #[test]
    fn the_node_speaks_for_all_and_its_containers_are_no_guests() {
        let mut claims = Claims::new(Registered::default());
        let bad = guest("bad", None);
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&bad)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c1"), Speaker::Node), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&bad)), Err(Foreign::Node));
    }

    #[test]
    fn a_shims_containers_are_the_guests_too_that_is_named_like_their_sandbox() {
        let registered = Registered::default();
        let mut claims = Claims::new(registered.clone());
        let (own, other, named) = (guest("s1", None), guest("s2", None), guest("vm", Some(&["c2"])));
        registered.add(&named);
        for container in ["c1", "c2"] {
            assert_eq!(
                claims.check(&id(container), Speaker::Shim(Some("s1"), Mode::Proxy)),
                Ok(Standing::Own)
            );
        }
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&own)), Ok(Standing::BesideShim(Mode::Proxy)));
        assert_eq!(claims.check(&id("c1"), Speaker::Guest(&other)), Err(Foreign::Node));
        assert_eq!(claims.check(&id("c2"), Speaker::Guest(&named)), Ok(Standing::BesideShim(Mode::Proxy)));
        assert_eq!(claims.check(&id("c2"), Speaker::Guest(&own)), Err(Foreign::Another("vm".to_owned())));
        assert_eq!(claims.check(&id("c1"), Speaker::Node), Ok(Standing::BesideShim(Mode::Proxy)));
        assert_eq!(claims.check(&id("c3"), Speaker::Shim(None, Mode::Wrapped)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c3"), Speaker::Guest(&own)), Err(Foreign::Node));
        // It spoke before the shim did: then it does so no more.
        assert_eq!(claims.check(&id("c4"), Speaker::Guest(&other)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c4"), Speaker::Shim(Some("s1"), Mode::Proxy)), Ok(Standing::Own));
        assert_eq!(claims.check(&id("c4"), Speaker::Guest(&other)), Err(Foreign::Node));
    }

    #[test]
    fn claims_are_bounded_and_names_made_up_push_out_nobody_elses() {
        let mut claims = Claims::new(Registered::default());
        let (good, bad) = (guest("good", None), guest("bad", None));
        claims.check(&id("mine"), Speaker::Guest(&good)).unwrap();
        claims.check(&id("the-nodes"), Speaker::Node).unwrap();
        for at in 0..CLAIMS + 100 {
            claims.check(&id(&format!("c{at}")), Speaker::Guest(&bad)).unwrap();
        }
        assert_eq!((claims.owners.len(), claims.shares.len()), (CLAIMS, CLAIMS));
        assert_eq!(claims.check(&id("mine"), Speaker::Guest(&bad)), Err(Foreign::Another("good".to_owned())));
        assert_eq!(claims.check(&id("the-nodes"), Speaker::Guest(&bad)), Err(Foreign::Node));
    }
}
