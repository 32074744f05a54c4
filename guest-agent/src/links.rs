//! Serves each link by a server of its own, so that one reader can be told from another, and a link that ends takes its cursor with it.

use std::collections::HashMap;

use coroner_proto::transport::Incoming;
use futures::StreamExt as _;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Server, Service};

use crate::log::log;
use crate::shared::Told;

/// Links at once. Each takes some 12 KiB: whoever may connect could otherwise fill the guest's memory.
const MAX_LINKS: usize = 32;

/// Serves what comes until told to stop.
pub(crate) async fn serve(
    mut incoming: Incoming,
    services: impl Fn() -> HashMap<String, Service>,
    mut told: watch::Receiver<Told>,
) {
    let mut links = JoinSet::new();
    let mut full = false;
    let stop = told.clone();
    loop {
        tokio::select! {
            accepted = incoming.next() => match accepted {
                None => break,
                Some(Err(error)) => log!(Warn, "a link was not accepted", error = error),
                Some(Ok((socket, ended))) if links.len() < MAX_LINKS => {
                    full = false;
                    links.spawn(link(socket, ended, services(), stop.clone()));
                }
                Some(Ok(_)) => {
                    if !std::mem::replace(&mut full, true) {
                        log!(Warn, "too many links; closing what comes", most = MAX_LINKS);
                    }
                }
            },
            Some(_) = links.join_next() => {}
            _ = told.wait_for(|told| told.stopping) => break,
        }
    }
    drop(incoming);
    while links.join_next().await.is_some() {}
}

/// One link's life.
async fn link(
    socket: Socket,
    ended: oneshot::Receiver<()>,
    services: HashMap<String, Service>,
    mut told: watch::Receiver<Told>,
) {
    // The one link, and then none for ever: a listener that ends takes the server with it.
    let only = futures::stream::iter([Ok(socket)]).chain(futures::stream::pending());
    let mut server = Server::new().add_listener(Listener::new(only)).register_service(services);
    if let Err(error) = server.start().await {
        log!(Warn, "a link was not served", error = error);
        return;
    }
    tokio::select! {
        // Resolves when the link is dropped, whoever ended it.
        _ = ended => {}
        _ = told.wait_for(|told| told.stopping) => {}
    }
    // What fails here is over anyway.
    server.shutdown().await.ok();
}
