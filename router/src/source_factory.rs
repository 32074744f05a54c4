//! Makes the tasks of sources: of configured sources, of guests, and of a shim that embeds the
//! router.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::{BoxFuture, ready};
use tokio::sync::{mpsc, watch};

use crate::config::{Source, SourceKind};
use crate::counts::SourceCounts;
use coroner_containerd::holds::Holds;
use coroner_core::mode::Mode;
use coroner_sources::agent::AgentSource;
use coroner_sources::envelope::{Envelope, Guest};
use coroner_sources::kata::KataSource;
use coroner_sources::shim::{EmbeddedShim, ExitBarriers, ShimSource};
use coroner_sources::{FinalCounters, RecoveredSources, Shutdown};
use coroner_transport::Address;

/// A guest, and the channel that turns true when it is removed.
pub type RemovableGuest = (Arc<Guest>, watch::Receiver<bool>);

/// What every source of a router needs.
#[derive(Clone, Debug)]
pub struct SourceFactory {
    /// The node's name.
    pub node: String,
    /// To the intake, which ends when the last sender is dropped.
    pub envelopes: mpsc::Sender<Envelope>,
    /// What the journal has of each source.
    pub recovered: RecoveredSources,
    /// Agents that are queried for a final counter read.
    pub final_counters: FinalCounters,
    /// Exits held by a waiting shim.
    pub holds: Holds,
    /// Turns true at the shutdown.
    pub stop: watch::Receiver<bool>,
}

impl SourceFactory {
    /// The task of a source, which runs until the shutdown. A source with a guest is not trusted,
    /// and ends too when the guest is removed.
    pub fn task(
        &self,
        source: &Source,
        counts: Arc<SourceCounts>,
        guest: Option<RemovableGuest>,
    ) -> BoxFuture<'static, ()> {
        let (guest, removed) = guest.unzip();
        let shutdown = Shutdown { stop: self.stop.clone(), removed };
        let (node, envelopes) = (self.node.clone(), self.envelopes.clone());
        match source.kind {
            SourceKind::Agent => {
                let recovered = self.recovered.of(&source.name);
                let final_counters = self.final_counters.clone();
                let agent = AgentSource::new(
                    source.clone(),
                    node,
                    envelopes,
                    counts,
                    guest,
                    recovered,
                    final_counters,
                );
                Box::pin(agent.run(shutdown))
            }
            SourceKind::Kata => {
                Box::pin(KataSource::new(source.clone(), node, envelopes, counts, guest).run(shutdown))
            }
            // Shims run on the node: the check of the configuration refuses such a guest.
            SourceKind::Shim if guest.is_some() => Box::pin(ready(())),
            SourceKind::Shim => Box::pin(self.shims(source, counts).run(shutdown)),
        }
    }

    /// The settings of the source of a shim that embeds the router. Its mode is `sole`.
    pub fn embedded_source(name: &str) -> Source {
        Source {
            name: name.to_owned(),
            kind: SourceKind::Shim,
            mode: Mode::Sole,
            guest: None,
            // Not used: an embedding shim needs no socket.
            address: Address::Unix(PathBuf::new()),
            machine: None,
        }
    }

    /// A shim that embeds the router, and the task of its source. `namespace` is containerd's. Must
    /// be called on the runtime.
    pub fn embed(
        &self,
        source: &Source,
        namespace: &str,
        counts: Arc<SourceCounts>,
    ) -> (EmbeddedShim, BoxFuture<'static, ()>) {
        let shutdown = Shutdown { stop: self.stop.clone(), removed: None };
        let (shim, task) = self.shims(source, counts).embedded(namespace.to_owned(), shutdown);
        (shim, Box::pin(task))
    }

    /// The task of a source of type `shim` on a socket that is already open.
    pub fn shims_on(
        &self,
        source: &Source,
        counts: Arc<SourceCounts>,
        listener: UnixListener,
    ) -> BoxFuture<'static, ()> {
        let shutdown = Shutdown { stop: self.stop.clone(), removed: None };
        Box::pin(self.shims(source, counts).on(listener).run(shutdown))
    }

    fn shims(&self, source: &Source, counts: Arc<SourceCounts>) -> ShimSource {
        let barriers =
            ExitBarriers { holds: self.holds.clone(), final_counters: self.final_counters.clone() };
        let recovered = self.recovered.of(&source.name);
        ShimSource::new(
            source.clone(),
            self.node.clone(),
            self.envelopes.clone(),
            counts,
            recovered,
            barriers,
        )
    }
}
