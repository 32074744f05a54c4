//! The writer thread: group commit of everything queued, and a new segment when the current one has
//! grown.
//! The field's name: write-ahead log.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;

use super::codec::encode;
use super::live_set::LiveSet;
use super::record::{JournalRecord, PendingRecord, SegmentHeader, VERSION};
use super::segment::Disk;
use super::{Batch, Notes};
use crate::JournalCounts;

/// Segment size after which a new segment begins with the live set; larger where the live set is.
pub(super) const SEGMENT: u64 = 4 << 20;
/// Bytes of one write: the rest goes with the next one.
const WRITE: usize = 1 << 20;

/// Capacity kept for the next write.
const BUFFER: usize = 64 << 10;

/// Appends to one segment at a time.
#[derive(Debug)]
pub(super) struct Writer<D> {
    pub(super) disk: D,
    boot: String,
    /// Bytes that the whole journal may take.
    pub(super) size: u64,
    /// Bytes after which a new segment begins.
    pub(super) segment: u64,
    pub(super) notes: Arc<Notes>,
    stalled: Arc<AtomicBool>,
    pub(super) counts: Arc<JournalCounts>,
    live: LiveSet,
    pub(super) number: u64,
    length: u64,
    /// The bytes of one write.
    buffer: Vec<u8>,
    /// The segment lacks a record that counts: only a new one is complete.
    stale: bool,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(
        disk: D,
        boot: String,
        size: u64,
        notes: Arc<Notes>,
        stalled: Arc<AtomicBool>,
        counts: Arc<JournalCounts>,
    ) -> Self {
        let (live, number, length, buffer) = (LiveSet::default(), 0, 0, Vec::new());
        Self {
            disk,
            boot,
            size,
            segment: SEGMENT,
            notes,
            stalled,
            counts,
            live,
            number,
            length,
            buffer,
            stale: true,
        }
    }

    /// Continues from the recovered live set. If the segment cannot be written now, the first batch
    /// retries.
    pub(super) fn begin(&mut self, live: LiveSet, last: u64) {
        (self.live, self.number) = (live, last);
        self.rotate();
    }

    pub(super) fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(first) = batches.blocking_recv() {
            self.write_queued(first, &mut batches);
        }
        // Notes that came after the last batch.
        self.write(Vec::new());
    }

    /// Writes this batch and those queued behind it (group commit).
    pub(super) fn write_queued(&mut self, first: Batch, batches: &mut mpsc::Receiver<Batch>) {
        let mut all = vec![first];
        let size = |batch: &Batch| batch.items.iter().map(|item| item.line().len()).sum::<usize>();
        let mut bytes = all.iter().map(size).sum::<usize>();
        while bytes < WRITE
            && let Ok(next) = batches.try_recv()
        {
            bytes += size(&next);
            all.push(next);
        }
        self.write(all);
    }

    /// Writes all batches at once and answers their senders.
    pub(super) fn write(&mut self, mut batches: Vec<Batch>) {
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        // A sender that timed out reported its batch as not written, so it must not be written now.
        batches.retain(|batch| batch.written.as_ref().is_none_or(|written| !written.is_closed()));
        let mut bytes = std::mem::take(&mut self.buffer);
        for item in notes.iter().chain(batches.iter().flat_map(|batch| &batch.items)) {
            bytes.extend_from_slice(item.line());
        }
        let written = bytes.is_empty() || self.append(&bytes);
        bytes.clear();
        bytes.shrink_to(BUFFER);
        self.buffer = bytes;
        for note in notes {
            // If it is not in this segment, the next one begins with it.
            self.live.apply(note);
        }
        for Batch { items, written: waiting } in batches {
            let received = waiting.is_none_or(|waiting| waiting.send(written).is_ok());
            for item in items.into_iter().filter(|_| written) {
                let timed_out = matches!(item, PendingRecord::Accepted { .. }) && !received;
                if let (PendingRecord::Accepted { n, .. }, true) = (&item, timed_out) {
                    // In the segment, but its sender timed out: the source keeps the signal, and no
                    // stage here would ever finish it.
                    let done = PendingRecord::Done { n: *n, line: encode(&JournalRecord::Done { n: *n }) };
                    self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                }
                self.live.apply(item);
            }
        }
        self.stalled.store(false, Ordering::Release);
        self.counts.bytes.store(self.length, Ordering::Relaxed);
        if self.length > self.segment.max(2 * self.live.bytes() as u64) {
            self.rotate();
        }
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        if self.length + bytes.len() as u64 > self.size {
            self.stale = true;
        }
        if self.stale && !self.rotate() || self.length + bytes.len() as u64 > self.size {
            return false;
        }
        match self.disk.append(bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                true
            }
            Err(error) => {
                // The write may be torn; the next segment does not contain it either way.
                self.disk.cut(self.length).unwrap_or(());
                self.stale = true;
                self.failed(&error);
                false
            }
        }
    }

    /// Begins a segment with the live set, and removes those before it.
    fn rotate(&mut self) -> bool {
        let number = self.number + 1;
        let segment = SegmentHeader { version: VERSION, boot: self.boot.clone() };
        let mut bytes = encode(&JournalRecord::Segment(segment));
        bytes.extend(self.live.lines());
        let begun = self.disk.begin(number).and_then(|()| {
            let filled = self.disk.append(&bytes).and_then(|()| self.disk.finish(number));
            filled.inspect_err(|_| self.disk.revert())
        });
        if let Err(error) = begun {
            self.failed(&error);
            return false;
        }
        (self.number, self.length, self.stale) = (number, bytes.len() as u64, false);
        if let Err(error) = self.disk.remove_before(number) {
            // Recovery would read it again, without effect: it has nothing that the new segment
            // lacks.
            self.failed(&error);
        }
        if self.counts.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("journal writes succeed again");
        }
        true
    }

    fn failed(&self, error: &io::Error) {
        if !self.counts.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "journal write failed (journal.directory); signals stay in their agents until they are delivered");
        }
    }
}
