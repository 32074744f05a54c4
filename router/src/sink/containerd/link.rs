//! The connection to containerd's event socket: dialled anew as soon as it ends, not at the next event.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::shim_async::{Client, EventsClient};
use coroner_proto::guard::Guard;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use ttrpc::asynchronous::transport::Socket;

/// Between two tries to connect. containerd takes a connection a tenth of a second after its start.
const GAP: Duration = Duration::from_millis(20);
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// A connection, counted from 1; none while there is none.
#[derive(Clone, Default)]
struct State {
    generation: u64,
    client: Option<EventsClient>,
}

/// Keeps the connection.
pub(in super::super) struct Links {
    address: PathBuf,
    state: watch::Sender<State>,
    doubts: watch::Sender<u64>,
}

/// What a sender sees of it.
#[derive(Clone)]
pub(in super::super) struct Link {
    state: watch::Receiver<State>,
    doubts: watch::Sender<u64>,
}

impl Links {
    pub(in super::super) fn new(address: PathBuf) -> Self {
        Self { address, state: watch::Sender::default(), doubts: watch::Sender::new(0) }
    }

    pub(in super::super) fn link(&self) -> Link {
        Link { state: self.state.subscribe(), doubts: self.doubts.clone() }
    }

    /// Dials, and dials again whenever the connection ends or is doubted. For ever.
    pub(in super::super) async fn keep(self) {
        let (mut silent, mut gap) = (false, GAP);
        let mut doubts = self.doubts.subscribe();
        for generation in 1.. {
            let ended = loop {
                match dial(&self.address).await {
                    Ok((client, ended)) => {
                        self.state.send_replace(State { generation, client: Some(client) });
                        break ended;
                    }
                    Err(error) => {
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
                // Its end is all there is to hear.
                _ = ended => gap = GAP,
                // It was there and did not answer: not at once again.
                () = doubted(&mut doubts, generation) => tokio::time::sleep(gap).await,
            }
            self.state.send_replace(State { generation, client: None });
        }
    }
}

/// Resolves when a connection is doubted. The guard of what is watched must not be held on.
async fn doubted(doubts: &mut watch::Receiver<u64>, generation: u64) {
    drop(doubts.wait_for(|it| *it >= generation).await);
}

async fn dial(address: &PathBuf) -> std::io::Result<(EventsClient, oneshot::Receiver<()>)> {
    let mut guard = Guard::new(UnixStream::connect(address).await?);
    let ended = guard.ended();
    Ok((EventsClient::new(Client::new(Socket::new(guard))), ended))
}

impl Link {
    /// The connection, as soon as there is one, and which it is.
    pub(in super::super) async fn up(&mut self) -> (u64, EventsClient) {
        loop {
            let now = self.state.borrow_and_update().clone();
            if let Some(client) = now.client {
                return (now.generation, client);
            }
            // Who keeps it lives as long as who sends.
            self.state.changed().await.unwrap_or(());
        }
    }

    /// Says that a connection is no good, and waits until there is none or another.
    pub(in super::super) async fn doubt(&mut self, generation: u64, error: &ttrpc::Error) {
        tracing::debug!(%error, "an event was not taken");
        self.doubts.send_if_modified(|doubted| {
            let newer = generation > *doubted;
            *doubted = generation.max(*doubted);
            newer
        });
        let other = |state: &State| state.generation != generation || state.client.is_none();
        drop(self.state.wait_for(other).await);
    }

    /// Whether this connection is up.
    pub(in super::super) fn is(&self, generation: u64) -> bool {
        let now = self.state.borrow();
        now.generation == generation && now.client.is_some()
    }

    /// Waits for a connection later than this one.
    pub(in super::super) async fn later_than(&mut self, generation: u64) -> u64 {
        let later = |state: &State| state.generation > generation && state.client.is_some();
        let found = self.state.wait_for(later).await.map(|state| state.generation);
        match found {
            Ok(generation) => generation,
            Err(_) => std::future::pending().await,
        }
    }
}
