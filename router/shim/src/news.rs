//! What the router is told in the background: signals that were sent, and statuses that were told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::shim::{KillRequest, Process as ProtoProcess, ReleasedRequest, RequestedRequest};
use coroner_proto::shim_ttrpc::ShimClient;
use tokio::sync::Notify;
use tokio::time::sleep;
use ttrpc::Code;

use crate::router::{Router, Silence};
use crate::task::Process;

/// Statuses that wait to be told: of a router that is away for long, the newest ends are the ones it can still make something of.
const RELEASES: usize = 512;
/// Signals that wait to be told, for each container and in all. A runtime that is told to stop a container sends two.
const KILLS_OF_ONE: usize = 16;
const KILLS: usize = 256;
/// Signals in one call: a frame has room for this many with the longest of ids.
const KILLS_AT_ONCE: usize = 64;
/// How long one call may take.
const WITHIN: Duration = Duration::from_secs(2);
/// Between an attempt that failed and the next.
const GAP: Duration = Duration::from_secs(1);

/// What whoever asked was told of a process's end. Half the size of the message: of these there may be many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) process: Process,
    pub(crate) pid: Option<u32>,
    pub(crate) status: u32,
    /// The router had no say in it.
    pub(crate) expired: bool,
}

/// The queue of what is to be told.
#[derive(Debug)]
pub(crate) struct News {
    namespace: String,
    router: Arc<Router>,
    queue: Mutex<Queue>,
    more: Notify,
    empty: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each with its number.
    releases: VecDeque<(u64, Told)>,
    count: u64,
    kills: VecDeque<KillRequest>,
}

enum Next {
    Kills(RequestedRequest),
    Release(u64, Told),
}

impl News {
    pub(crate) fn new(namespace: String, router: Arc<Router>) -> Self {
        Self { namespace, router, queue: Mutex::default(), more: Notify::new(), empty: Notify::new() }
    }

    /// A signal was sent.
    pub(crate) fn kill(&self, kill: KillRequest) {
        let mut queue = self.queue();
        let same = |other: &&KillRequest| other.container_id == kill.container_id;
        if queue.kills.iter().filter(same).count() >= KILLS_OF_ONE {
            let oldest = queue.kills.iter().position(|other| same(&other));
            oldest.and_then(|at| queue.kills.remove(at));
        } else if queue.kills.len() >= KILLS {
            queue.kills.pop_front();
        }
        queue.kills.push_back(kill);
        self.more.notify_one();
    }

    /// A status was told.
    pub(crate) fn release(&self, told: Told) {
        let mut queue = self.queue();
        if queue.releases.len() >= RELEASES {
            queue.releases.pop_front();
        }
        queue.count += 1;
        let number = queue.count;
        queue.releases.push_back((number, told));
        self.more.notify_one();
    }

    /// The signals sent to a container that the router has not answered for.
    pub(crate) fn kills_of(&self, container: &str) -> Vec<KillRequest> {
        self.queue().kills.iter().filter(|kill| kill.container_id == container).cloned().collect()
    }

    /// The router has answered for these.
    pub(crate) fn known(&self, kills: &[KillRequest]) {
        self.queue().kills.retain(|kill| kills.iter().all(|known| known.seq != kill.seq));
    }

    /// Tells what comes, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let Some(next) = self.next() else {
                self.empty.notify_waiters();
                self.more.notified().await;
                continue;
            };
            let told = match &next {
                Next::Kills(request) => self.tell_kills(request).await,
                Next::Release(_, told) => self.tell_release(told).await,
            };
            match told {
                Ok(()) => self.done(&next),
                Err(Silence::Refused(status)) if is_final(status.code()) => self.done(&next),
                Err(_) => sleep(GAP).await,
            }
        }
    }

    /// Resolves once all is told.
    pub(crate) async fn told(&self) {
        loop {
            let empty = self.empty.notified();
            if self.next().is_none() {
                return;
            }
            empty.await;
        }
    }

    fn next(&self) -> Option<Next> {
        let queue = self.queue();
        if !queue.kills.is_empty() {
            let requests = queue.kills.iter().take(KILLS_AT_ONCE).cloned().collect();
            let namespace = self.namespace.clone();
            return Some(Next::Kills(RequestedRequest { namespace, requests, ..Default::default() }));
        }
        queue.releases.front().map(|(number, told)| Next::Release(*number, told.clone()))
    }

    fn done(&self, next: &Next) {
        match next {
            Next::Kills(request) => self.known(&request.requests),
            Next::Release(number, _) => self.queue().releases.retain(|(other, _)| other != number),
        }
    }

    async fn tell_kills(&self, request: &RequestedRequest) -> Result<(), Silence> {
        let tell = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.requested(context, &request).await }
        };
        self.router.call(WITHIN, tell).await.map(|_| ())
    }

    async fn tell_release(&self, told: &Told) -> Result<(), Silence> {
        let request = ReleasedRequest {
            namespace: self.namespace.clone(),
            process: Some(told.process.message(told.pid)).into(),
            status: told.status,
            expired: told.expired,
            ..Default::default()
        };
        let tell = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.released(context, &request).await }
        };
        self.router.call(WITHIN, tell).await.map(|_| ())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// As the router reads it.
    pub(crate) fn message(&self, pid: Option<u32>) -> ProtoProcess {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        ProtoProcess { container_id, exec_id, pid, ..Default::default() }
    }
}

/// Whether the same words would be answered the same.
fn is_final(code: Code) -> bool {
    matches!(code, Code::FAILED_PRECONDITION | Code::INVALID_ARGUMENT | Code::NOT_FOUND | Code::UNIMPLEMENTED)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn kill(seq: u64, container: &str) -> KillRequest {
        KillRequest { seq, container_id: container.to_owned(), ..Default::default() }
    }

    fn news() -> News {
        News::new("k8s.io".to_owned(), Arc::new(Router::new(Path::new("/nowhere"))))
    }

    #[test]
    fn of_too_many_signals_the_oldest_of_that_container_goes() {
        let news = news();
        news.kill(kill(1, "b"));
        (2..=20).for_each(|seq| news.kill(kill(seq, "a")));
        let seqs: Vec<u64> = news.kills_of("a").iter().map(|kill| kill.seq).collect();
        assert_eq!(seqs, (5..=20).collect::<Vec<_>>());
        assert_eq!(news.kills_of("b").len(), 1);
        (21..=300).for_each(|seq| news.kill(kill(seq, &format!("c{seq}"))));
        assert_eq!(news.queue().kills.len(), KILLS);
        assert_eq!(news.kills_of("c300").len(), 1);
    }

    #[test]
    fn of_too_many_statuses_the_oldest_goes() {
        let news = news();
        for status in 0..2_000 {
            let process = Process::default();
            news.release(Told { process, pid: None, status, expired: false });
        }
        let queue = news.queue();
        let kept: Vec<u32> = queue.releases.iter().map(|(_, told)| told.status).collect();
        assert_eq!(kept, (2_000 - 512..2_000).collect::<Vec<_>>());
    }
}
