//! The exit barrier of guests: the guest's agent reads its OOM counter a last time before a shim's
//! exit is ruled on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::agent_client::conn::AgentConn;
use crate::ownership::Registered;
use coroner_core::signal::ContainerId;

/// Timeout from the request until the signals it caused are received. A slow guest delays only its
/// own exits, and by no more than this.
const TIMEOUT: Duration = Duration::from_millis(150);

/// Registry of the guest agents with a link. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FinalCounters {
    agents: Arc<Mutex<HashMap<String, RegisteredAgent>>>,
    registered: Registered,
}

#[derive(Clone, Debug)]
struct RegisteredAgent {
    conn: AgentConn,
    /// The stream position up to which signals were received.
    read: watch::Receiver<u64>,
}

/// Registers an agent in the registry; dropping it removes the agent.
#[derive(Debug)]
pub(super) struct FinalCounter {
    all: FinalCounters,
    guest: String,
    read: watch::Sender<u64>,
}

impl FinalCounters {
    /// An empty registry. Guests are also found by the containers they were registered with.
    pub fn new(registered: Registered) -> Self {
        Self { agents: Arc::default(), registered }
    }

    pub(super) fn add(&self, guest: &str, conn: AgentConn, after: u64) -> FinalCounter {
        let (read, reader) = watch::channel(after);
        self.with(|agents| agents.insert(guest.to_owned(), RegisteredAgent { conn, read: reader }));
        FinalCounter { all: self.clone(), guest: guest.to_owned(), read }
    }

    /// Whether no agent is registered.
    pub(super) fn is_empty(&self) -> bool {
        self.with(|agents| agents.is_empty())
    }

    /// Requests the final counter read from the container's agent and waits until the signals it
    /// caused are received. True: the agent counts the container's kills.
    pub(super) async fn read_final(&self, id: &ContainerId, sandbox: Option<&str>) -> bool {
        let registered = self.registered.guest(id);
        let name = registered.as_ref().map(|guest| guest.name.as_str()).or(sandbox);
        let Some(mut agent) = name.and_then(|name| self.with(|agents| agents.get(name).cloned())) else {
            return false;
        };
        let final_read = async {
            let (seq, kills) =
                agent.conn.read_final_count(id, TIMEOUT).await.map_err(|error| error.to_string())?;
            let read = agent.read.wait_for(|read| *read >= seq).await;
            read.map(|_| kills.is_some()).map_err(|_| "its link ended".to_owned())
        };
        match timeout(TIMEOUT, final_read).await {
            Ok(Ok(counted)) => counted,
            Ok(Err(error)) => {
                tracing::debug!(container = %id, guest = name, error, "the request for the final counter read failed");
                false
            }
            Err(_) => {
                tracing::debug!(container = %id, guest = name, "the final counter read timed out");
                false
            }
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, RegisteredAgent>) -> T) -> T {
        change(&mut self.agents.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FinalCounter {
    /// Signals up to this sequence number were received.
    pub(super) fn read(&self, after: u64) {
        self.read.send_replace(after);
    }
}

impl Drop for FinalCounter {
    fn drop(&mut self) {
        self.all.with(|agents| agents.remove(&self.guest));
    }
}
