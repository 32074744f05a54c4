//! Serves each connection by its own ttrpc server, so that readers are distinguished and a
//! connection that ends releases its cursor.

use std::collections::HashMap;

use coroner_transport::Incoming;
use futures::StreamExt as _;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Server, Service};

use crate::log::log;
use crate::shared_state::Progress;

/// Concurrent connections. Each takes some 12 KiB: without a limit a peer could fill the guest's
/// memory.
const MAX_CONNECTIONS: usize = 32;

/// Accepts and serves connections until the agent stops.
pub(crate) async fn serve(
    mut incoming: Incoming,
    services: impl Fn() -> HashMap<String, Service>,
    mut progress: watch::Receiver<Progress>,
) {
    let mut connections = JoinSet::new();
    let mut full = false;
    let stop = progress.clone();
    loop {
        tokio::select! {
            accepted = incoming.next() => match accepted {
                None => break,
                Some(Err(error)) => log!(Warn, "cannot accept a connection", error = error),
                Some(Ok((socket, ended))) if connections.len() < MAX_CONNECTIONS => {
                    full = false;
                    connections.spawn(serve_one(socket, ended, services(), stop.clone()));
                }
                Some(Ok(_)) => {
                    if !std::mem::replace(&mut full, true) {
                        log!(Warn, "too many connections; new ones are closed", limit = MAX_CONNECTIONS);
                    }
                }
            },
            Some(_) = connections.join_next() => {}
            _ = progress.wait_for(|progress| progress.stopping) => break,
        }
    }
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until it ends or the agent stops.
async fn serve_one(
    socket: Socket,
    ended: oneshot::Receiver<()>,
    services: HashMap<String, Service>,
    mut progress: watch::Receiver<Progress>,
) {
    // A stream of one connection that never ends: the server stops when its listener ends.
    let only = futures::stream::iter([Ok(socket)]).chain(futures::stream::pending());
    let mut server = Server::new().add_listener(Listener::new(only)).register_service(services);
    if let Err(error) = server.start().await {
        log!(Warn, "cannot serve a connection", error = error);
        return;
    }
    tokio::select! {
        // Resolves when the connection is dropped, by either side.
        _ = ended => {}
        _ = progress.wait_for(|progress| progress.stopping) => {}
    }
    // An error is ignored: the connection is over.
    server.shutdown().await.ok();
}
