//! The thread that writes: everything that waits in one write, and a new file when the old one has grown.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;

use super::disk::Disk;
use super::entry::{Entry, Item, Segment, VERSION};
use super::line::encode;
use super::live::Live;
use super::{Batch, Notes};
use crate::counts::JournalCounts;

/// A file this large is followed by another, which begins with what still counts; larger where that takes as much.
const SEGMENT: u64 = 4 << 20;
/// Bytes of one write: what waits longer goes with the next.
const WRITE: usize = 1 << 20;

/// Room that is kept for the next write.
const BUFFER: usize = 64 << 10;

/// Appends to one file at a time.
#[derive(Debug)]
pub(super) struct Writer<D> {
    pub(super) disk: D,
    boot: String,
    /// Bytes that all of it may take.
    pub(super) size: u64,
    /// Bytes after which another file follows.
    pub(super) segment: u64,
    pub(super) notes: Arc<Notes>,
    stalled: Arc<AtomicBool>,
    pub(super) counts: Arc<JournalCounts>,
    live: Live,
    pub(super) number: u64,
    length: u64,
    /// What is written at once is put together here.
    buffer: Vec<u8>,
    /// The file lacks something that counts: only a new one will do.
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
        let (live, number, length, buffer) = (Live::default(), 0, 0, Vec::new());
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

    /// Goes on from what was read. Where that cannot be written yet, it is tried again with the first batch.
    pub(super) fn begin(&mut self, live: Live, last: u64) {
        (self.live, self.number) = (live, last);
        self.turn();
    }

    pub(super) fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(first) = batches.blocking_recv() {
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
        // What was noted after the last batch.
        self.write(Vec::new());
    }

    /// Writes all of it at once, and says so to who waits.
    pub(super) fn write(&mut self, mut batches: Vec<Batch>) {
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        // Who waited too long was told that it is not written: now it must not be.
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
            // Not in the file, it is in the next one's beginning.
            self.live.take(note);
        }
        for Batch { items, written: waiting } in batches {
            let told = waiting.is_none_or(|waiting| waiting.send(written).is_ok());
            for item in items.into_iter().filter(|_| written) {
                let given_up = matches!(item, Item::Accepted { .. }) && !told;
                if let (Item::Accepted { n, .. }, true) = (&item, given_up) {
                    // In the file, but its source was told that it is not: it keeps the signal, and nobody here would ever be done with it.
                    let done = Item::Done { n: *n, line: encode(&Entry::Done { n: *n }) };
                    self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                }
                self.live.take(item);
            }
        }
        self.stalled.store(false, Ordering::Release);
        self.counts.bytes.store(self.length, Ordering::Relaxed);
        if self.length > self.segment.max(2 * self.live.bytes() as u64) {
            self.turn();
        }
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        if self.length + bytes.len() as u64 > self.size {
            self.stale = true;
        }
        if self.stale && !self.turn() || self.length + bytes.len() as u64 > self.size {
            return false;
        }
        match self.disk.append(bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                true
            }
            Err(error) => {
                // What is there of it is torn; whatever becomes of it, the next file does not have it.
                self.disk.cut(self.length).unwrap_or(());
                self.stale = true;
                self.failed(&error);
                false
            }
        }
    }

    /// Begins a new file with what counts, and removes those before it.
    fn turn(&mut self) -> bool {
        let number = self.number + 1;
        let segment = Segment { version: VERSION, boot: self.boot.clone() };
        let mut bytes = encode(&Entry::Segment(segment));
        bytes.extend(self.live.lines());
        let begun = self.disk.begin(number).and_then(|()| {
            let filled = self.disk.append(&bytes).and_then(|()| self.disk.show(number));
            filled.inspect_err(|_| self.disk.go_back())
        });
        if let Err(error) = begun {
            self.failed(&error);
            return false;
        }
        (self.number, self.length, self.stale) = (number, bytes.len() as u64, false);
        if let Err(error) = self.disk.remove_before(number) {
            // Read again at the next start, it says nothing that this one does not.
            self.failed(&error);
        }
        if self.counts.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the journal is written again");
        }
        true
    }

    fn failed(&self, error: &io::Error) {
        if !self.counts.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the journal cannot be written (journal.directory); signals stay in their agents until they are delivered");
        }
    }
}
