//! Requests the evidence of OOM kills from an agent, beside its signals: no signal waits for it.
//!
//! Evidence is not acknowledged: the agent keeps that of a container's last kill. A router that
//! dies before it has ruled on it loses it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use coroner_core::signal::{ContainerId, Event, KillEvidence, Moment, Signal};
use coroner_transport::TokenBucket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::agent_client::conn::AgentConn;
use super::agent_client::rpc::LinkError;
use super::signal_stream::SignalStream;
use crate::envelope::{Ack, Envelope, Origin, unix_ms};

/// Time from a kill's signal until its evidence is requested: the kernel logs a kill's report
/// before it, and the victims of a group after it.
const AFTER: Duration = Duration::from_millis(10);
/// Time until evidence that is missing or not complete is requested once more.
const AGAIN: Duration = Duration::from_millis(30);
/// Containers with a requested evidence. A storm that kills more containers than this at once
/// leaves some kills without evidence, as the agent does, which keeps that of 16.
const PENDING: usize = 64;
/// Requests of one source: rate per second, and burst. An answer has up to 20 KiB.
const RATE: (u32, u32) = (20, 64);

/// A kill with its evidence still to be requested.
#[derive(Debug)]
struct PendingRequest {
    kill: Signal,
    /// The kill's sequence number: evidence with another one is another kill's.
    seq: u64,
    due: Instant,
    is_second: bool,
}

/// The requests of one link; they end with it.
#[derive(Debug)]
pub(super) struct EvidenceRequests {
    kills: mpsc::Sender<PendingRequest>,
    _task: JoinSet<()>,
}

impl EvidenceRequests {
    /// Requests evidence over this connection.
    pub(super) fn start(
        conn: AgentConn,
        stream: SignalStream,
        origin: Arc<Origin>,
        envelopes: mpsc::Sender<Envelope>,
    ) -> Self {
        let (kills, requests) = mpsc::channel(PENDING);
        let mut task = JoinSet::new();
        let link = Link { conn, stream, origin, envelopes };
        task.spawn(link.run(requests));
        Self { kills, _task: task }
    }

    /// Requests the evidence of this signal, if it is a kill.
    pub(super) fn expect(&self, signal: &Signal, seq: u64) {
        if !matches!(&signal.event, Event::OomKill(kill) if kill.added != Some(0)) {
            return;
        }
        let request =
            PendingRequest { kill: signal.clone(), seq, due: Instant::now() + AFTER, is_second: false };
        if self.kills.try_send(request).is_err() {
            tracing::debug!(kill = signal.id, "evidence not requested: too many kills at once");
        }
    }
}

struct Link {
    conn: AgentConn,
    stream: SignalStream,
    origin: Arc<Origin>,
    envelopes: mpsc::Sender<Envelope>,
}

impl Link {
    async fn run(self, mut requests: mpsc::Receiver<PendingRequest>) {
        let mut bucket = TokenBucket::new(RATE.0, RATE.1);
        let mut pending: VecDeque<PendingRequest> = VecDeque::new();
        loop {
            let due = pending.front().map(|it| it.due);
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => add(&mut pending, request),
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    while let Err(wait) = bucket.take(1, Instant::now()) {
                        sleep(wait).await;
                    }
                    let Some(request) = pending.pop_front() else { continue };
                    match self.answer(request).await {
                        Ok(None) => {}
                        Ok(Some(again)) => add(&mut pending, again),
                        Err(error @ LinkError::Lacks { .. }) => {
                            tracing::debug!(source = self.origin.source, %error, "no evidence of kills");
                            return;
                        }
                        // The link's own reader finds out too, and ends it.
                        Err(error) => {
                            tracing::debug!(source = self.origin.source, %error, "evidence not received");
                        }
                    }
                }
            }
        }
    }

    /// Requests once and sends what is there. `Some`: it is to be requested again.
    async fn answer(&self, request: PendingRequest) -> Result<Option<PendingRequest>, LinkError> {
        let container = &request.kill.target.container_id;
        let evidence = self.conn.evidence(container, &request.kill.id).await?;
        // That of a later kill is requested for that one.
        let found = evidence.filter(|(_, seq)| *seq == request.seq).map(|(evidence, _)| evidence);
        let is_complete = found.as_ref().is_some_and(is_complete);
        if !is_complete && !request.is_second {
            return Ok(Some(PendingRequest { due: Instant::now() + AGAIN, is_second: true, ..request }));
        }
        let Some(evidence) = found else { return Ok(None) };
        let signal = self.signal(&request, evidence);
        let envelope = Envelope::new(signal, Arc::clone(&self.origin), Ack::none());
        if self.envelopes.send(envelope).await.is_err() {
            tracing::debug!(kill = request.kill.id, "evidence dropped: the router stops");
        }
        Ok(None)
    }

    /// The evidence as a signal of the kill's container, at the kill's time.
    fn signal(&self, request: &PendingRequest, evidence: KillEvidence) -> Signal {
        let container: &ContainerId = &request.kill.target.container_id;
        Signal {
            id: self.stream.event(container, format_args!("evidence-{}", request.seq)),
            at: Moment { received_ms: unix_ms(), ..request.kill.at },
            target: self.stream.target(container.clone()),
            event: Event::Evidence(Arc::new(evidence)),
            attributes: Vec::new(),
        }
    }
}

fn is_complete(evidence: &KillEvidence) -> bool {
    evidence.report.as_ref().is_some_and(|report| !report.incomplete)
}

/// Adds a request, in the order in which they are due. It replaces one of the same container: the
/// agent keeps the evidence of the last kill alone.
fn add(pending: &mut VecDeque<PendingRequest>, request: PendingRequest) {
    let container = &request.kill.target.container_id;
    if let Some(at) = pending.iter().position(|it| it.kill.target.container_id == *container) {
        if pending[at].seq > request.seq {
            return;
        }
        pending.remove(at);
    } else if pending.len() == PENDING {
        return;
    }
    let at = pending.partition_point(|it| it.due <= request.due);
    pending.insert(at, request);
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::signal::{Evidence, OomKilled};

    fn request(container: &str, seq: u64, due: Instant) -> PendingRequest {
        let stream = SignalStream { node: "n".to_owned(), guest: None, id: "s".to_owned() };
        let id = ContainerId::try_from(container.to_owned()).unwrap();
        let kill = stream.received(id, seq, Event::OomKill(OomKilled::new(Evidence::Counter)), 1);
        PendingRequest { kill, seq, due, is_second: false }
    }

    #[test]
    fn later_kill_of_a_container_replaces_its_request() {
        let now = Instant::now();
        let mut pending = VecDeque::new();
        for (container, seq, ms) in [("a", 1, 10), ("b", 2, 5), ("a", 3, 20), ("a", 1, 1)] {
            add(&mut pending, request(container, seq, now + Duration::from_millis(ms)));
        }
        let order: Vec<u64> = pending.iter().map(|it| it.seq).collect();
        assert_eq!(order, [2, 3]);
        for n in 0..2 * PENDING {
            add(&mut pending, request(&format!("c{n}"), 9, now));
        }
        assert_eq!(pending.len(), PENDING);
    }
}
