//! TaskOOMs that are sent once more after containerd came back: it broadcasts events and keeps none, and CRI takes in what it hears only while it
//! runs. Sent twice they change nothing there.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Publish;
use super::link::Link;
use crate::identity;
use crate::journal::Published;
use crate::ruling::TaskEvent;

/// A container that ended longer ago has been reported by CRI with what it knew.
const DEAD: Duration = Duration::from_secs(60);
/// CRI answers some tenths of a second after the event socket does; without it events go out after this long.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// Kept at once: as many as cases.
const MOST: usize = 16_384;

struct Oom {
    signal: String,
    namespace: String,
    ended: Option<Instant>,
}

/// What was published.
pub(super) struct Repeats {
    grpc: Option<PathBuf>,
    ooms: HashMap<String, Oom>,
    /// The connection that all of them went over, or over an earlier one.
    generation: u64,
}

impl Repeats {
    /// An earlier run of the router published these: containerd may have come back since.
    pub(super) fn new(grpc: Option<PathBuf>, published: Vec<Published>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oom = |it: Published| {
            let ago = it.ended_ms.map(|at| now.saturating_sub(Duration::from_millis(at)));
            let ended = ago.map(|ago| Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
            let fresh = ago.is_none_or(|ago| ago < DEAD);
            fresh.then(|| (it.container.to_string(), Oom { signal: it.id, namespace: it.namespace, ended }))
        };
        let ooms: HashMap<String, Oom> = published.into_iter().filter_map(oom).collect();
        // With none from before, the first connection has nothing to hear again.
        Self { grpc, generation: u64::from(ooms.is_empty()), ooms }
    }

    /// An event has gone out.
    pub(super) fn published(&mut self, publish: &Publish) {
        match &publish.event {
            TaskEvent::Oom => {
                if self.ooms.len() >= MOST {
                    self.prune();
                }
                if self.ooms.len() < MOST {
                    let (signal, namespace) = (publish.signal.clone(), publish.namespace.clone());
                    let ended = self.ooms.get(&publish.container).and_then(|oom| oom.ended);
                    self.ooms.insert(publish.container.clone(), Oom { signal, namespace, ended });
                }
            }
            TaskEvent::Exit { exec_id: None, .. } => self.ended(&publish.container),
            TaskEvent::Exit { .. } => {}
        }
    }

    /// A container has ended.
    pub(super) fn ended(&mut self, container: &str) {
        if let Some(oom) = self.ooms.get_mut(container) {
            oom.ended.get_or_insert_with(Instant::now);
        }
    }

    fn prune(&mut self) {
        self.ooms.retain(|_, oom| oom.ended.is_none_or(|at| at.elapsed() < DEAD));
    }

    /// Resolves when containerd has come back and hears again.
    pub(super) fn due(&self, mut link: Link) -> impl Future<Output = u64> + use<> {
        let (generation, grpc) = (self.generation, self.grpc.clone());
        async move {
            let mut generation = generation;
            loop {
                generation = link.later_than(generation).await;
                let ready = async {
                    let Some(grpc) = &grpc else { return std::future::pending().await };
                    let channel = identity::connect(grpc.clone());
                    while !identity::cri_answers(channel.clone()).await {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                // Time is up: whoever listens by now hears it.
                tokio::time::timeout(PATIENCE, ready).await.unwrap_or(());
                // One that ended meanwhile was no coming back.
                if link.is(generation) {
                    return generation;
                }
            }
        }
    }

    /// What is to be sent again, over the connection that `due` told of.
    pub(super) fn take(&mut self, generation: u64) -> Vec<Publish> {
        self.generation = generation;
        self.prune();
        let publish = |(container, oom): (&String, &Oom)| Publish {
            signal: oom.signal.clone(),
            container: container.clone(),
            namespace: oom.namespace.clone(),
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: true,
            ack: None,
        };
        self.ooms.iter().map(publish).collect()
    }
}
