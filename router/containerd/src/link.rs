//! The connection to containerd's event socket: dialled anew as soon as it ends, not at the next
//! event.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::shim_async::{Client, EventsClient};
use coroner_transport::Guard;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use ttrpc::asynchronous::transport::Socket;

/// Gaps between two tries to connect, the first and the longest. containerd accepts a connection a
/// tenth of a second after its start.
const GAP: Duration = Duration::from_millis(20);
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// The state of the connection: connections are counted from 1; no client while it is down.
#[derive(Clone, Default)]
struct ConnectionState {
    generation: u64,
    client: Option<EventsClient>,
}

/// Dials the connection and keeps it up.
pub struct EventLinkManager {
    address: PathBuf,
    report: Box<dyn Fn(Option<String>) + Send + Sync>,
    state: watch::Sender<ConnectionState>,
    doubts: watch::Sender<u64>,
}

/// A sender's handle of the connection.
#[derive(Clone)]
pub struct EventLink {
    state: watch::Receiver<ConnectionState>,
    doubts: watch::Sender<u64>,
}

impl fmt::Debug for EventLinkManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLinkManager").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for EventLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLink")
            .field("generation", &self.state.borrow().generation)
            .finish_non_exhaustive()
    }
}

impl EventLinkManager {
    /// A connection to the socket at `address`, dialled once [`EventLinkManager::keep`] runs. `report`
    /// receives why there is no connection, or `None` once there is one.
    pub fn new(address: PathBuf, report: impl Fn(Option<String>) + Send + Sync + 'static) -> Self {
        report(Some("not connected yet".to_owned()));
        let report = Box::new(report);
        Self { address, report, state: watch::Sender::default(), doubts: watch::Sender::new(0) }
    }

    /// A sender's handle of the connection.
    pub fn link(&self) -> EventLink {
        EventLink { state: self.state.subscribe(), doubts: self.doubts.clone() }
    }

    /// Dials, and dials again whenever the connection ends or a sender reports it as failed. Never
    /// returns.
    pub async fn keep(self) {
        let (mut silent, mut gap) = (false, GAP);
        let mut doubts = self.doubts.subscribe();
        for generation in 1.. {
            let ended = loop {
                match dial(&self.address).await {
                    Ok((client, ended)) => {
                        self.state.send_replace(ConnectionState { generation, client: Some(client) });
                        (self.report)(None);
                        break ended;
                    }
                    Err(error) => {
                        let at = self.address.display();
                        (self.report)(Some(format!("cannot connect to {at}: {error}")));
                        if !std::mem::replace(&mut silent, true) {
                            tracing::warn!(address = %self.address.display(), %error, "containerd does not answer");
                        }
                        tokio::time::sleep(gap).await;
                        gap = (gap * 2).min(LONGEST_GAP);
                    }
                }
            };
            if std::mem::take(&mut silent) {
                tracing::info!(address = %self.address.display(), "containerd answers again");
            }
            tokio::select! {
                _ = ended => gap = GAP,
                // The connection was up and did not answer: the next one is dialled after a gap.
                () = doubted(&mut doubts, generation) => tokio::time::sleep(gap).await,
            }
            self.state.send_replace(ConnectionState { generation, client: None });
            (self.report)(Some("the connection ended".to_owned()));
        }
    }
}

/// Resolves when a sender reports the connection as failed. Apart so that the watch's guard is not
/// held across an await.
async fn doubted(doubts: &mut watch::Receiver<u64>, generation: u64) {
    drop(doubts.wait_for(|it| *it >= generation).await);
}

async fn dial(address: &PathBuf) -> std::io::Result<(EventsClient, oneshot::Receiver<()>)> {
    let mut guard = Guard::new(UnixStream::connect(address).await?);
    let ended = guard.ended();
    Ok((EventsClient::new(Client::new(Socket::new(guard))), ended))
}

impl EventLink {
    /// The connection, as soon as there is one, and which it is.
    pub async fn up(&mut self) -> (u64, EventsClient) {
        loop {
            let now = self.state.borrow_and_update().clone();
            if let Some(client) = now.client {
                return (now.generation, client);
            }
            // Fails only when the manager is gone, which lives as long as the senders.
            self.state.changed().await.unwrap_or(());
        }
    }

    /// Reports a connection as failed, and waits until it is down or replaced.
    pub async fn doubt(&mut self, generation: u64, error: &ttrpc::Error) {
        tracing::debug!(%error, "containerd did not accept an event");
        self.doubts.send_if_modified(|doubted| {
            let newer = generation > *doubted;
            *doubted = generation.max(*doubted);
            newer
        });
        let other = |state: &ConnectionState| state.generation != generation || state.client.is_none();
        drop(self.state.wait_for(other).await);
    }

    /// Whether this connection is up.
    pub fn is(&self, generation: u64) -> bool {
        let now = self.state.borrow();
        now.generation == generation && now.client.is_some()
    }

    /// Waits for a connection later than this one.
    pub async fn later_than(&mut self, generation: u64) -> u64 {
        let later = |state: &ConnectionState| state.generation > generation && state.client.is_some();
        let found = self.state.wait_for(later).await.map(|state| state.generation);
        match found {
            Ok(generation) => generation,
            Err(_) => std::future::pending().await,
        }
    }
}
