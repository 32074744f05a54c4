//! The outbox: reports kill requests and released statuses to the router in the background, at
//! least once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::shim::{KillRequest, Process as ProtoProcess, ReleasedRequest, RequestedRequest};
use coroner_proto::shim_ttrpc::ShimClient;
use tokio::sync::Notify;
use tokio::time::sleep;
use ttrpc::Code;

use crate::router::{RouterClient, RouterError};
use crate::task::ProcessId;

/// Released statuses in the queue at most. If the router is away for long, the newest ones are
/// still of use to it; the oldest are evicted.
const RELEASES: usize = 512;
/// Kill requests in the queue at most, for one container and in all. A runtime that stops a
/// container sends two.
const KILLS_OF_ONE: usize = 16;
const KILLS: usize = 256;
/// Kill requests in one call: a frame has room for this many with the longest ids.
const KILLS_AT_ONCE: usize = 64;
/// Timeout of one call.
const WITHIN: Duration = Duration::from_secs(2);
/// Delay after a failed attempt.
const GAP: Duration = Duration::from_secs(1);

/// The status of a process's end that a caller has received. Half the size of the message: there
/// may be many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) process: ProcessId,
    pub(crate) pid: Option<u32>,
    /// Number of the hold in this proxy.
    pub(crate) hold: u64,
    pub(crate) status: u32,
    /// The hold ended without a ruling of the router: a timeout or a failed call.
    pub(crate) expired: bool,
}

/// The queue of reports to the router.
#[derive(Debug)]
pub(crate) struct Outbox {
    namespace: String,
    /// The proxy's random id.
    proxy_id: String,
    router: Arc<RouterClient>,
    queue: Mutex<OutboxQueue>,
    more: Notify,
    empty: Notify,
}

#[derive(Debug, Default)]
struct OutboxQueue {
    /// Each with its sequence number.
    releases: VecDeque<(u64, Release)>,
    count: u64,
    kills: VecDeque<KillRequest>,
}

enum OutboxItem {
    Kills(RequestedRequest),
    Release(u64, Release),
}

impl Outbox {
    pub(crate) fn new(namespace: String, proxy_id: String, router: Arc<RouterClient>) -> Self {
        Self {
            namespace,
            proxy_id,
            router,
            queue: Mutex::default(),
            more: Notify::new(),
            empty: Notify::new(),
        }
    }

    /// Queues a kill request. The oldest of the same container, or of all, is evicted if the queue
    /// is full.
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

    /// Queues a released status.
    pub(crate) fn release(&self, release: Release) {
        let mut queue = self.queue();
        if queue.releases.len() >= RELEASES {
            queue.releases.pop_front();
        }
        queue.count += 1;
        let number = queue.count;
        queue.releases.push_back((number, release));
        self.more.notify_one();
    }

    /// The id of a hold, for the router.
    pub(crate) fn hold_id(&self, hold: u64) -> String {
        format!("{}-{hold}", self.proxy_id)
    }

    /// The kill requests of a container that the router has not acknowledged.
    pub(crate) fn kills_of(&self, container: &str) -> Vec<KillRequest> {
        self.queue().kills.iter().filter(|kill| kill.container_id == container).cloned().collect()
    }

    /// Removes kill requests that the router has acknowledged.
    pub(crate) fn acknowledged(&self, kills: &[KillRequest]) {
        self.queue().kills.retain(|kill| kills.iter().all(|known| known.seq != kill.seq));
    }

    /// Sends queued reports for ever. Retries the head until the router has accepted or refused it.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let Some(next) = self.next() else {
                self.empty.notify_waiters();
                self.more.notified().await;
                continue;
            };
            let sent = match &next {
                OutboxItem::Kills(request) => self.send_kills(request).await,
                OutboxItem::Release(_, release) => self.send_release(release).await,
            };
            match sent {
                Ok(()) => self.complete(&next),
                Err(RouterError::Refused(status)) if is_final(status.code()) => self.complete(&next),
                Err(_) => sleep(GAP).await,
            }
        }
    }

    /// Resolves once the queue is empty.
    pub(crate) async fn drained(&self) {
        loop {
            let empty = self.empty.notified();
            if self.next().is_none() {
                return;
            }
            empty.await;
        }
    }

    fn next(&self) -> Option<OutboxItem> {
        let queue = self.queue();
        if !queue.kills.is_empty() {
            let requests = queue.kills.iter().take(KILLS_AT_ONCE).cloned().collect();
            let namespace = self.namespace.clone();
            return Some(OutboxItem::Kills(RequestedRequest { namespace, requests, ..Default::default() }));
        }
        queue.releases.front().map(|(number, release)| OutboxItem::Release(*number, release.clone()))
    }

    fn complete(&self, next: &OutboxItem) {
        match next {
            OutboxItem::Kills(request) => self.acknowledged(&request.requests),
            OutboxItem::Release(number, _) => self.queue().releases.retain(|(other, _)| other != number),
        }
    }

    async fn send_kills(&self, request: &RequestedRequest) -> Result<(), RouterError> {
        let send = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.requested(context, &request).await }
        };
        self.router.call(WITHIN, send).await.map(|_| ())
    }

    async fn send_release(&self, release: &Release) -> Result<(), RouterError> {
        let request = ReleasedRequest {
            namespace: self.namespace.clone(),
            process: Some(release.process.message(release.pid)).into(),
            status: release.status,
            expired: release.expired,
            hold_id: self.hold_id(release.hold),
            ..Default::default()
        };
        let send = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.released(context, &request).await }
        };
        self.router.call(WITHIN, send).await.map(|_| ())
    }

    fn queue(&self) -> MutexGuard<'_, OutboxQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProcessId {
    /// The process as a protocol message.
    pub(crate) fn message(&self, pid: Option<u32>) -> ProtoProcess {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        ProtoProcess { container_id, exec_id, pid, ..Default::default() }
    }
}

/// Whether a retry would get the same answer.
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

    fn outbox() -> Outbox {
        Outbox::new("k8s.io".to_owned(), "p".to_owned(), Arc::new(RouterClient::new(Path::new("/nowhere"))))
    }

    #[test]
    fn full_queue_evicts_oldest_kill_of_the_container() {
        let outbox = outbox();
        outbox.kill(kill(1, "b"));
        (2..=20).for_each(|seq| outbox.kill(kill(seq, "a")));
        let seqs: Vec<u64> = outbox.kills_of("a").iter().map(|kill| kill.seq).collect();
        assert_eq!(seqs, (5..=20).collect::<Vec<_>>());
        assert_eq!(outbox.kills_of("b").len(), 1);
        (21..=300).for_each(|seq| outbox.kill(kill(seq, &format!("c{seq}"))));
        assert_eq!(outbox.queue().kills.len(), KILLS);
        assert_eq!(outbox.kills_of("c300").len(), 1);
    }

    #[test]
    fn full_queue_evicts_oldest_release() {
        let outbox = outbox();
        for status in 0..2_000 {
            let process = ProcessId::default();
            outbox.release(Release { process, pid: None, hold: 1, status, expired: false });
        }
        let queue = outbox.queue();
        let kept: Vec<u32> = queue.releases.iter().map(|(_, release)| release.status).collect();
        assert_eq!(kept, (2_000 - 512..2_000).collect::<Vec<_>>());
    }
}
