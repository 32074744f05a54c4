//! The exit barrier where a guest's agent counts kills: it is asked once more before what a shim says of its container is ruled on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::peer::Peer;
use crate::claims::Registered;
use crate::signal::ContainerId;

/// From the question until the kill that the agent may have found is handed on. A guest that is slow holds up its own exits for so long, and nobody else's.
const WITHIN: Duration = Duration::from_millis(150);

/// The agents of guests whose links are up. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Settlers {
    links: Arc<Mutex<HashMap<String, Link>>>,
    registered: Registered,
}

#[derive(Clone, Debug)]
struct Link {
    peer: Peer,
    /// Up to where its signals are handed on.
    read: watch::Receiver<u64>,
}

/// Keeps an agent among those that are asked. Dropped, it is one no more.
#[derive(Debug)]
pub(super) struct Settler {
    all: Settlers,
    guest: String,
    read: watch::Sender<u64>,
}

impl Settlers {
    /// None yet; guests are known by their containers too.
    pub fn new(registered: Registered) -> Self {
        Self { links: Arc::default(), registered }
    }

    pub(super) fn add(&self, guest: &str, peer: Peer, after: u64) -> Settler {
        let (read, heard) = watch::channel(after);
        self.with(|links| links.insert(guest.to_owned(), Link { peer, read: heard }));
        Settler { all: self.clone(), guest: guest.to_owned(), read }
    }

    /// Whether nobody is there to be asked.
    pub(super) fn is_empty(&self) -> bool {
        self.with(|links| links.is_empty())
    }

    /// Has the agent that speaks for a container read its counter, and waits until what that gave is handed on. Whether somebody counts its kills.
    pub(super) async fn settle(&self, id: &ContainerId, sandbox: Option<&str>) -> bool {
        let registered = self.registered.guest(id);
        let name = registered.as_ref().map(|guest| guest.name.as_str()).or(sandbox);
        let Some(mut link) = name.and_then(|name| self.with(|links| links.get(name).cloned())) else {
            return false;
        };
        let settled = async {
            let (seq, kills) = link.peer.settle(id, WITHIN).await.map_err(|error| error.to_string())?;
            let read = link.read.wait_for(|read| *read >= seq).await;
            read.map(|_| kills.is_some()).map_err(|_| "its link ended".to_owned())
        };
        match timeout(WITHIN, settled).await {
            Ok(Ok(counted)) => counted,
            Ok(Err(error)) => {
                tracing::debug!(container = %id, guest = name, error, "the guest's agent was asked in vain");
                false
            }
            Err(_) => {
                tracing::debug!(container = %id, guest = name, "the guest's agent did not answer in time");
                false
            }
        }
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut HashMap<String, Link>) -> T) -> T {
        use_it(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Settler {
    /// Signals up to here are handed on.
    pub(super) fn read(&self, after: u64) {
        self.read.send_replace(after);
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.all.with(|links| links.remove(&self.guest));
    }
}
