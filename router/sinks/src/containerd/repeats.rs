//! Repeats TaskOOMs after containerd has restarted: it broadcasts events and keeps none, and CRI
//! receives them only while it runs. TaskOOM is idempotent there.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::super::publish::Publish;
use coroner_containerd::EventLink;
use coroner_core::ruling::TaskEvent;
use coroner_journal::PublishedOom;

/// CRI has reported a container that ended longer ago, without the kill.
const DEAD: Duration = Duration::from_secs(60);
/// Timeout for CRI, which answers some tenths of a second after the event socket. After it the
/// events are repeated anyway.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Capacity: the same as for cases.
const MOST: usize = 16_384;
/// Minimum interval between two evictions of ended containers when the map is full: each eviction
/// scans the whole map, and thousands of kills can occur in a burst.
const PRUNE_GAP: Duration = Duration::from_secs(1);

struct Oom {
    signal: String,
    namespace: String,
    ended: Option<Instant>,
    /// Published by this run of the router.
    own: bool,
}

/// A new connection to containerd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reconnected {
    pub(crate) generation: u64,
    /// CRI answered the first check: it was running before.
    pub(crate) at_once: bool,
}

/// The published TaskOOMs.
pub(crate) struct Repeats {
    grpc: Option<PathBuf>,
    ooms: BTreeMap<String, Oom>,
    /// The latest connection that all of them were published on or before.
    generation: u64,
    /// This run has not had a connection yet.
    first: bool,
    pruned: Option<Instant>,
}

impl Repeats {
    /// Starts with what an earlier run of the router published: containerd may have restarted
    /// since.
    pub(crate) fn new(grpc: Option<PathBuf>, published: Vec<PublishedOom>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oom = |it: PublishedOom| {
            let ago = it.ended_ms.map(|at| now.saturating_sub(Duration::from_millis(at)));
            let ended = ago.map(|ago| Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
            let fresh = ago.is_none_or(|ago| ago < DEAD);
            let oom = Oom { signal: it.id, namespace: it.namespace, ended, own: false };
            fresh.then(|| (it.container.to_string(), oom))
        };
        let ooms: BTreeMap<String, Oom> = published.into_iter().filter_map(oom).collect();
        // Without recovered TaskOOMs the first connection needs no repeat.
        let first = !ooms.is_empty();
        Self { grpc, generation: u64::from(!first), ooms, first, pruned: None }
    }

    /// Records a published event.
    pub(crate) fn published(&mut self, publish: &Publish) {
        match &publish.event {
            TaskEvent::Oom => {
                if self.ooms.len() >= MOST && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE_GAP) {
                    self.prune();
                }
                if self.ooms.len() < MOST {
                    let (signal, namespace) = (publish.signal.clone(), publish.namespace.clone());
                    let ended = self.ooms.get(&publish.container).and_then(|oom| oom.ended);
                    self.ooms.insert(publish.container.clone(), Oom { signal, namespace, ended, own: true });
                }
            }
            TaskEvent::Exit { exec_id: None, .. } => self.ended(&publish.container),
            TaskEvent::Exit { .. } | TaskEvent::Forwarded(_) => {}
        }
    }

    /// Records that a container has ended.
    pub(crate) fn ended(&mut self, container: &str) {
        if let Some(oom) = self.ooms.get_mut(container) {
            oom.ended.get_or_insert_with(Instant::now);
        }
    }

    fn prune(&mut self) {
        let now = Instant::now();
        self.ooms.retain(|_, oom| oom.ended.is_none_or(|at| now - at < DEAD));
        self.pruned = Some(now);
    }

    /// The latest connection that all of them were published on or before.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Resolves when containerd is connected again and receives events.
    pub(crate) fn due(&self, mut link: EventLink) -> impl Future<Output = Reconnected> + use<> {
        let (generation, grpc) = (self.generation, self.grpc.clone());
        async move {
            let mut generation = generation;
            loop {
                generation = link.later_than(generation).await;
                let ready = async {
                    let Some(grpc) = &grpc else { return std::future::pending().await };
                    let channel = coroner_containerd::connect(grpc.clone());
                    let mut at_once = true;
                    while !coroner_containerd::cri_answers(channel.clone()).await {
                        at_once = false;
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                    at_once
                };
                // After the timeout the events are repeated to the subscribers of that moment.
                let at_once = tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false);
                // A connection that has ended meanwhile does not count.
                if link.is(generation) {
                    return Reconnected { generation, at_once };
                }
            }
        }
    }

    /// The events to repeat on the connection that `due` has resolved with.
    pub(crate) fn take(&mut self, Reconnected { generation, at_once }: Reconnected) -> Vec<Publish> {
        self.generation = generation;
        self.prune();
        // containerd was running when this router started: it has received what this run published.
        let received = std::mem::take(&mut self.first) && at_once;
        let publish = |(container, oom): (&String, &Oom)| Publish {
            signal: oom.signal.clone(),
            container: container.clone(),
            namespace: oom.namespace.clone(),
            bundle: None,
            exec: None,
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: true,
            ack: None,
        };
        self.ooms.iter().filter(|(_, oom)| !(received && oom.own)).map(publish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::signal::ContainerId;

    fn published(container: &str) -> Publish {
        Publish {
            signal: format!("n::s:{container}:1"),
            container: container.to_owned(),
            namespace: "k8s.io".to_owned(),
            bundle: None,
            exec: None,
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        }
    }

    #[test]
    fn own_taskoom_repeated_only_after_containerd_restart() {
        let earlier = PublishedOom {
            id: "n::s:earlier:1".to_owned(),
            container: ContainerId::try_from("earlier".to_owned()).unwrap(),
            namespace: "k8s.io".to_owned(),
            ended_ms: None,
        };
        let check = |at_once: bool, first: &[&str]| {
            let mut repeats = Repeats::new(None, vec![earlier.clone()]);
            repeats.published(&published("own"));
            let mut taken = |generation, at_once| {
                let mut all: Vec<_> = repeats
                    .take(Reconnected { generation, at_once })
                    .into_iter()
                    .map(|it| it.container)
                    .collect();
                all.sort();
                all
            };
            assert_eq!(taken(1, at_once), first);
            assert_eq!(taken(2, true), ["earlier", "own"], "containerd has restarted");
        };
        check(true, &["earlier"]);
        // containerd was starting too: CRI may not have received the events.
        check(false, &["earlier", "own"]);
    }
}
