//! TaskOOMs that are sent once more after containerd came back: it broadcasts events and keeps none, and CRI takes in what it hears only while it
//! runs. Sent twice they change nothing there.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::super::publish::Publish;
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
/// When it is full, those that ended long ago are looked for this often: each look goes through all of them, and kills may come by the thousand.
const PRUNE_GAP: Duration = Duration::from_secs(1);

struct Oom {
    signal: String,
    namespace: String,
    ended: Option<Instant>,
    /// By this run of the router.
    own: bool,
}

/// containerd hears, over a connection that is new.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Hears {
    pub(in super::super) generation: u64,
    /// CRI answered when it was first looked for: it had been there.
    pub(in super::super) at_once: bool,
}

/// What was published.
pub(in super::super) struct Repeats {
    grpc: Option<PathBuf>,
    ooms: HashMap<String, Oom>,
    /// The connection that all of them went over, or over an earlier one.
    generation: u64,
    /// No connection of this run was told of yet.
    first: bool,
    pruned: Option<Instant>,
}

impl Repeats {
    /// An earlier run of the router published these: containerd may have come back since.
    pub(in super::super) fn new(grpc: Option<PathBuf>, published: Vec<Published>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oom = |it: Published| {
            let ago = it.ended_ms.map(|at| now.saturating_sub(Duration::from_millis(at)));
            let ended = ago.map(|ago| Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
            let fresh = ago.is_none_or(|ago| ago < DEAD);
            let oom = Oom { signal: it.id, namespace: it.namespace, ended, own: false };
            fresh.then(|| (it.container.to_string(), oom))
        };
        let ooms: HashMap<String, Oom> = published.into_iter().filter_map(oom).collect();
        // With none from before, the first connection has nothing to hear again.
        let first = !ooms.is_empty();
        Self { grpc, generation: u64::from(!first), ooms, first, pruned: None }
    }

    /// An event has gone out.
    pub(in super::super) fn published(&mut self, publish: &Publish) {
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

    /// A container has ended.
    pub(in super::super) fn ended(&mut self, container: &str) {
        if let Some(oom) = self.ooms.get_mut(container) {
            oom.ended.get_or_insert_with(Instant::now);
        }
    }

    fn prune(&mut self) {
        let now = Instant::now();
        self.ooms.retain(|_, oom| oom.ended.is_none_or(|at| now - at < DEAD));
        self.pruned = Some(now);
    }

    /// Resolves when containerd has come back and hears again.
    pub(in super::super) fn due(&self, mut link: Link) -> impl Future<Output = Hears> + use<> {
        let (generation, grpc) = (self.generation, self.grpc.clone());
        async move {
            let mut generation = generation;
            loop {
                generation = link.later_than(generation).await;
                let ready = async {
                    let Some(grpc) = &grpc else { return std::future::pending().await };
                    let channel = identity::connect(grpc.clone());
                    let mut at_once = true;
                    while !identity::cri_answers(channel.clone()).await {
                        at_once = false;
                        tokio::time::sleep(LOOK).await;
                    }
                    at_once
                };
                // Time is up: whoever listens by now hears it.
                let at_once = tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false);
                // One that ended meanwhile was no coming back.
                if link.is(generation) {
                    return Hears { generation, at_once };
                }
            }
        }
    }

    /// What is to be sent again, over the connection that `due` told of.
    pub(in super::super) fn take(&mut self, Hears { generation, at_once }: Hears) -> Vec<Publish> {
        self.generation = generation;
        self.prune();
        // At the start of a router beside a containerd that was there all the time, what it has published itself was heard.
        let heard = std::mem::take(&mut self.first) && at_once;
        let publish = |(container, oom): (&String, &Oom)| Publish {
            signal: oom.signal.clone(),
            container: container.clone(),
            namespace: oom.namespace.clone(),
            bundle: None,
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: true,
            ack: None,
        };
        self.ooms.iter().filter(|(_, oom)| !(heard && oom.own)).map(publish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::ContainerId;

    fn published(container: &str) -> Publish {
        Publish {
            signal: format!("n::s:{container}:1"),
            container: container.to_owned(),
            namespace: "k8s.io".to_owned(),
            bundle: None,
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        }
    }

    #[test]
    fn what_this_run_has_published_is_repeated_once_containerd_came_back_and_not_before() {
        let earlier = Published {
            id: "n::s:earlier:1".to_owned(),
            container: ContainerId::try_from("earlier".to_owned()).unwrap(),
            namespace: "k8s.io".to_owned(),
            ended_ms: None,
        };
        let check = |at_once: bool, first: &[&str]| {
            let mut repeats = Repeats::new(None, vec![earlier.clone()]);
            repeats.published(&published("own"));
            let mut taken = |generation, at_once| {
                let mut all: Vec<_> =
                    repeats.take(Hears { generation, at_once }).into_iter().map(|it| it.container).collect();
                all.sort();
                all
            };
            assert_eq!(taken(1, at_once), first);
            assert_eq!(taken(2, true), ["earlier", "own"], "it came back");
        };
        check(true, &["earlier"]);
        // containerd was only starting, too: CRI may not have heard.
        check(false, &["earlier", "own"]);
    }
}
