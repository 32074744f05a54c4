//! The cursor into an agent's stream: what was read, what was acknowledged.

use std::time::Duration;

use coroner_proto::agent::{self, NextSignalsRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::agent_client::conn::{AgentConn, BATCH};
use super::agent_client::rpc::{LinkError, TIMEOUT};
use super::watermark::Watermark;
use coroner_journal::{Cursor, Journal};

/// In-flight signals of one source at most. The agent keeps state and reports it again, so what is
/// not read yet is safe there.
pub(super) const IN_FLIGHT: usize = 4096;
/// Long-poll timeout: how long the agent holds a request that it has no signal for.
const WAIT: Duration = Duration::from_secs(30);
/// Delay from the first pending acknowledgement to the request that carries it, so that a burst
/// costs one request.
const ACK_AFTER: Duration = Duration::from_millis(200);
/// Minimum interval between snapshots for new or lost containers. Without it a guest that always
/// loses signals, or always has a new container, could have a snapshot taken for every answer.
const SNAPSHOT_GAP: Duration = Duration::from_millis(200);

/// Read position, low watermark and acknowledged position of one stream.
#[derive(Debug)]
pub(super) struct StreamCursor {
    source: String,
    journal: Option<Journal>,
    pub(super) stream: String,
    pub(super) after: u64,
    pub(super) watermark: Watermark,
    pub(super) acks: mpsc::Receiver<u64>,
    pub(super) done: mpsc::Sender<u64>,
    pub(super) acked: u64,
    /// The acknowledged position that the journal has.
    pub(super) written: u64,
    /// The agent's count of appeared containers as of its last answer, and whether a snapshot for
    /// them is due.
    pub(super) appeared: u64,
    pub(super) snapshot_due: bool,
    /// When the last snapshot was taken.
    pub(super) last_snapshot: Option<Instant>,
    pub(super) pressure_lost: u64,
}

impl StreamCursor {
    /// The start of a stream.
    pub(super) fn new(source: String, journal: Option<Journal>, stream: String) -> Self {
        Self::resume(Cursor { source, stream, seq: 0 }, journal)
    }

    /// Resumes at the position recovered from the journal.
    pub(super) fn resume(Cursor { source, stream, seq }: Cursor, journal: Option<Journal>) -> Self {
        let (done, acks) = mpsc::channel(IN_FLIGHT);
        let mut watermark = Watermark::default();
        watermark.skip(seq);
        Self {
            source,
            journal,
            stream,
            after: seq,
            watermark,
            acks,
            done,
            acked: 0,
            written: seq,
            appeared: 0,
            snapshot_due: false,
            last_snapshot: None,
            pressure_lost: 0,
        }
    }

    /// Writes the low watermark to the journal, so that the next run of the router resumes there.
    pub(super) fn write(&mut self) {
        let level = self.watermark.level();
        if let Some(journal) = self.journal.as_ref().filter(|_| level > self.written) {
            self.written = level;
            let (source, stream) = (self.source.clone(), self.stream.clone());
            journal.cursor(Cursor { source, stream, seq: level });
        }
    }

    /// Waits for signals; meanwhile sends acknowledgements. `reports_appeared`: the agent also
    /// answers when containers have appeared.
    pub(super) async fn next(
        &mut self,
        conn: &AgentConn,
        reports_appeared: bool,
    ) -> Result<agent::NextSignalsResponse, LinkError> {
        self.write();
        // At most until a due snapshot may be taken; never so short that the next request follows
        // at once.
        let wait = if self.snapshot_due { self.until_snapshot().max(Duration::from_millis(5)) } else { WAIT };
        let request = NextSignalsRequest {
            stream_id: self.stream.clone(),
            after_seq: self.after,
            ack_seq: self.watermark.level(),
            max: BATCH,
            wait_ms: u32::try_from(wait.as_millis()).expect("thirty seconds at most"),
            appeared: reports_appeared.then_some(self.appeared),
            ..NextSignalsRequest::default()
        };
        self.acked = request.ack_seq;
        let next = conn.next_signals(&request, WAIT + TIMEOUT);
        tokio::pin!(next);
        loop {
            tokio::select! {
                answer = &mut next => return answer,
                Some(seq) = self.acks.recv() => self.watermark.done(seq),
                () = tokio::time::sleep(ACK_AFTER), if self.watermark.level() > self.acked => {
                    self.write();
                    let request = NextSignalsRequest {
                        stream_id: self.stream.clone(),
                        after_seq: u64::MAX,
                        ack_seq: self.watermark.level(),
                        max: 1,
                        ..NextSignalsRequest::default()
                    };
                    self.acked = request.ack_seq;
                    conn.next_signals(&request, TIMEOUT).await?;
                }
            }
        }
    }

    pub(super) fn collect_acks(&mut self) {
        while let Ok(seq) = self.acks.try_recv() {
            self.watermark.done(seq);
        }
    }

    /// Time left until a snapshot may be taken again.
    pub(super) fn until_snapshot(&self) -> Duration {
        self.last_snapshot.map_or(Duration::ZERO, |last| SNAPSHOT_GAP.saturating_sub(last.elapsed()))
    }

    /// Waits until a snapshot may be taken again.
    pub(super) async fn wait_for_snapshot(&mut self) {
        tokio::time::sleep(self.until_snapshot()).await;
        self.last_snapshot = Some(Instant::now());
    }
}
