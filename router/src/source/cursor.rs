//! How far an agent's stream was read and dealt with, and what it is told of that.

use std::time::Duration;

use coroner_proto::agent::{self, NextSignalsRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::agent::AgentSource;
use super::calls::{LinkError, PATIENCE};
use super::peer::{BATCH, Peer};
use super::watermark::Watermark;
use crate::journal;

/// Signals of this source that may be on their way at once. An agent tells state, and tells it again: what is not
/// read yet is safe there.
pub(super) const UNDER_WAY: usize = 4096;
/// How long the agent holds a call with nothing to tell.
const WAIT: Duration = Duration::from_secs(30);
/// Acks are told this long after the first of them, so that a burst costs one call.
const ACK_AFTER: Duration = Duration::from_millis(200);
/// Snapshots for containers that appeared, or because something was lost, at most this often: a storm of them costs a few, and a guest that always loses
/// or always has something new gets no more.
const SNAPSHOT_GAP: Duration = Duration::from_millis(200);

/// How far one stream was read and dealt with.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) stream: String,
    pub(super) after: u64,
    pub(super) mark: Watermark,
    pub(super) acks: mpsc::Receiver<u64>,
    pub(super) done: mpsc::Sender<u64>,
    pub(super) acked: u64,
    /// As the journal has it.
    pub(super) written: u64,
    /// Containers that had appeared when it was last told, and whether they are to be looked for.
    pub(super) appeared: u64,
    pub(super) unlooked: bool,
    /// When the last snapshot was taken.
    pub(super) looked: Option<Instant>,
    pub(super) pressure_lost: u64,
}

impl Cursor {
    pub(super) fn new(stream: String) -> Self {
        Self::from(journal::Cursor { source: String::new(), stream, seq: 0 })
    }

    /// One that goes on where an earlier run of the router was.
    pub(super) fn from(journal::Cursor { stream, seq, .. }: journal::Cursor) -> Self {
        let (done, acks) = mpsc::channel(UNDER_WAY);
        let mut mark = Watermark::default();
        mark.skip(seq);
        Self {
            stream,
            after: seq,
            mark,
            acks,
            done,
            acked: 0,
            written: seq,
            appeared: 0,
            unlooked: false,
            looked: None,
            pressure_lost: 0,
        }
    }
}

impl AgentSource {
    /// Writes down how far everything is dealt with, so that the next run of the router reads on from there.
    pub(super) fn write_cursor(&mut self) {
        let cursor = &mut self.cursor;
        let level = cursor.mark.level();
        if let Some(journal) = self.history.journal.as_ref().filter(|_| level > cursor.written) {
            cursor.written = level;
            let (source, stream) = (self.source.name.clone(), cursor.stream.clone());
            journal.cursor(journal::Cursor { source, stream, seq: level });
        }
    }

    /// Waits for signals; meanwhile tells the agent what has been dealt with.
    pub(super) async fn next(&mut self, peer: &Peer) -> Result<agent::NextSignalsResponse, LinkError> {
        self.write_cursor();
        let asks = self.asks_who_lives();
        // No longer than until those that appeared may be looked for; not so short that it would be asked again at once.
        let wait = if self.cursor.unlooked { self.until_look().max(Duration::from_millis(5)) } else { WAIT };
        let cursor = &mut self.cursor;
        let request = NextSignalsRequest {
            stream_id: cursor.stream.clone(),
            after_seq: cursor.after,
            ack_seq: cursor.mark.level(),
            max: BATCH,
            wait_ms: u32::try_from(wait.as_millis()).expect("thirty seconds at most"),
            appeared: asks.then_some(cursor.appeared),
            ..NextSignalsRequest::default()
        };
        cursor.acked = request.ack_seq;
        let next = peer.next_signals(&request, WAIT + PATIENCE);
        tokio::pin!(next);
        loop {
            let cursor = &mut self.cursor;
            tokio::select! {
                answer = &mut next => return answer,
                Some(seq) = cursor.acks.recv() => cursor.mark.done(seq),
                () = tokio::time::sleep(ACK_AFTER), if cursor.mark.level() > cursor.acked => {
                    self.write_cursor();
                    let cursor = &mut self.cursor;
                    let request = NextSignalsRequest {
                        stream_id: cursor.stream.clone(),
                        after_seq: u64::MAX,
                        ack_seq: cursor.mark.level(),
                        max: 1,
                        ..NextSignalsRequest::default()
                    };
                    cursor.acked = request.ack_seq;
                    peer.next_signals(&request, PATIENCE).await?;
                }
            }
        }
    }

    pub(super) fn collect_acks(&mut self) {
        while let Ok(seq) = self.cursor.acks.try_recv() {
            self.cursor.mark.done(seq);
        }
    }

    /// Until a snapshot may be taken again.
    pub(super) fn until_look(&self) -> Duration {
        self.cursor.looked.map_or(Duration::ZERO, |looked| SNAPSHOT_GAP.saturating_sub(looked.elapsed()))
    }

    /// Waits until a snapshot may be taken again.
    pub(super) async fn gap(&mut self) {
        tokio::time::sleep(self.until_look()).await;
        self.cursor.looked = Some(Instant::now());
    }
}
