//! The write-ahead log: a signal is acknowledged after the write, so that it survives the router's
//! death. See "The journal" in docs/operating/operations.md.
//!
//! ```text
//!   intake ----- accepted -------> writer (thread) --> segments --> recovery (at the start)
//!   delivery --- ruled, done --->    live set          .journal
//!   source ----- cursor, lives ->
//! ```

mod ack;
mod counts;
mod segment;
mod record;
mod codec;
mod live_set;
mod recovery;
mod writer;
mod timer;

pub use ack::Ack;
pub use codec::Damage;
pub use counts::JournalCounts;
pub use record::{
    AcceptedSignal, Cursor, JournalRecord, RulingRecord, RunningContainer, SegmentHeader, ShimContainer,
};
pub use recovery::{Damaged, PublishedOom, Recovered, SegmentFile, Undelivered, read, recovered};
pub use segment::{Disk, JournalFolder};
pub use timer::{Elapsed, Timer};

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use coroner_core::ruling::TaskEvent;
use coroner_core::signal::ContainerId;
use record::PendingRecord;
use writer::{SEGMENT, Writer};

/// Write timeout: a disk that hangs must not delay current signals.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Batches queued for the writer: two stages submit one batch at a time, the rest are wake-ups.
const BATCHES: usize = 16;

/// Records that a sender waits to be written.
#[derive(Debug)]
struct Batch {
    items: Vec<PendingRecord>,
    written: Option<oneshot::Sender<bool>>,
}

/// Where the journal is, and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// Its folder.
    pub directory: PathBuf,
    /// Largest size in bytes.
    pub size: u64,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder cannot be used.
    #[error("cannot use {path} (journal.directory): {source}")]
    Folder {
        /// Path of the folder.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// Another router holds the lock.
    #[error(
        "another router uses {path} (journal.directory): process {pid}; stop it first, or give this one another directory"
    )]
    Taken {
        /// Path of the folder.
        path: PathBuf,
        /// Process id of the holder.
        pid: String,
    },
}

/// Records that no sender waits for, until the writer takes them. Each concerns a signal in flight
/// or a running container, and the number of these is bounded.
type Notes = Mutex<Vec<PendingRecord>>;

/// Writes records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    batches: mpsc::Sender<Batch>,
    notes: Arc<Notes>,
    next: Arc<AtomicU64>,
    /// A write timed out and has not ended yet: until then no batch waits for a write.
    stalled: Arc<AtomicBool>,
    timer: Timer,
    counts: Arc<JournalCounts>,
}

/// The writer thread of an opened journal.
#[derive(Debug)]
pub struct Thread<D>(Writer<D>, mpsc::Receiver<Batch>);

impl<D: Disk> Thread<D> {
    /// Writes until every [`Journal`] is dropped. Blocks.
    pub fn run(self) {
        self.0.run(self.1);
    }

    /// Writes what is queued now: one turn of [`Thread::run`], without blocking.
    pub fn step(&mut self) {
        if let Ok(first) = self.1.try_recv() {
            self.0.write_queued(first, &mut self.1);
        }
    }

    /// Whether something is queued.
    pub fn is_due(&self) -> bool {
        !self.1.is_empty()
    }
}

/// A disk, the segments on it, and the boot that writes to it.
#[derive(Debug)]
pub struct JournalDisk<D> {
    /// Where segments are written.
    pub disk: D,
    /// The segments of earlier runs, oldest first.
    pub files: Vec<SegmentFile>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// How much a journal may write.
#[derive(Clone, Copy, Debug)]
pub struct JournalSizes {
    /// Bytes of the whole journal.
    pub whole: u64,
    /// Bytes after which a new segment begins.
    pub segment: u64,
}

/// Locks a journal's folder, recovers what is in it, and begins a segment with the live set.
pub fn open(
    settings: &JournalSettings,
    counts: Arc<JournalCounts>,
) -> Result<(Journal, Thread<JournalFolder>, Recovered), JournalError> {
    let disk = JournalFolder::take(&settings.directory)?;
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let failed = |source| JournalError::Folder { path: settings.directory.clone(), source };
    let files = recovery::files(&settings.directory).map_err(failed)?;
    let sizes = JournalSizes { whole: settings.size, segment: SEGMENT };
    Ok(open_on(JournalDisk { disk, files, boot }, sizes, Timer::default(), counts))
}

/// The same on any disk.
pub fn open_on<D: Disk>(
    from: JournalDisk<D>,
    sizes: JournalSizes,
    timer: Timer,
    counts: Arc<JournalCounts>,
) -> (Journal, Thread<D>, Recovered) {
    let JournalDisk { disk, files, boot } = from;
    let (recovered, live) = recovery::recover(files, &boot);
    let (notes, stalled) = (Arc::new(Notes::default()), Arc::<AtomicBool>::default());
    let mut writer =
        Writer::new(disk, boot, sizes.whole, Arc::clone(&notes), Arc::clone(&stalled), Arc::clone(&counts));
    writer.segment = sizes.segment;
    writer.begin(live, recovered.last);
    let (batches, waiting) = mpsc::channel(BATCHES);
    let next = Arc::new(AtomicU64::new(recovered.next));
    let journal = Journal { batches, notes, next, stalled, timer, counts };
    (journal, Thread(writer, waiting), recovered)
}

/// A batch of records before the write.
#[derive(Debug, Default)]
pub struct Accepting(Vec<PendingRecord>);

impl Journal {
    /// Adds a signal to a batch and returns its number.
    pub fn accept<'a>(&self, batch: &mut Accepting, entry: impl FnOnce(u64) -> AcceptedSignal<'a>) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        batch.0.push(PendingRecord::Accepted { n, line: codec::encode(&JournalRecord::Accepted(entry(n))) });
        n
    }

    /// Adds a ruling to a batch.
    pub fn rule(&self, batch: &mut Accepting, ruled: RulingRecord<'_>) {
        let (n, source) = (ruled.n, ruled.source.clone().into_owned());
        let container = ruled.container.clone().into_owned();
        let over = ruled.case.exit.is_some();
        let oom = ruled.events.contains(&TaskEvent::Oom);
        batch.0.push(PendingRecord::Ruled {
            n,
            source,
            container,
            over,
            oom,
            line: codec::encode(&JournalRecord::Ruled(ruled)),
        });
    }

    /// Writes a batch. False: it is not in the journal and never will be.
    pub async fn write(&self, batch: Accepting) -> bool {
        let count = batch.0.len() as u64;
        if count == 0 {
            return true;
        }
        let written = if self.stalled.load(Ordering::Acquire) { false } else { self.wait(batch.0).await };
        if written {
            self.counts.written.more(count);
        } else if self.counts.unjournaled.get() == 0 {
            tracing::error!(
                "journal write failed; after a restart only the agents can send these signals again"
            );
        }
        if !written {
            self.counts.unjournaled.more(count);
        }
        written
    }

    async fn wait(&self, items: Vec<PendingRecord>) -> bool {
        let (written, result) = oneshot::channel();
        let whole = async {
            self.batches.send(Batch { items, written: Some(written) }).await.ok()?;
            result.await.ok()
        };
        tokio::select! {
            biased;
            written = whole => written.unwrap_or(false),
            () = self.timer.after(TIMEOUT) => {
                // The writer clears it when its write has ended.
                self.stalled.store(true, Ordering::Release);
                false
            }
        }
    }

    /// Delivery of this signal is complete.
    pub fn done(&self, n: u64) {
        self.note(PendingRecord::Done { n, line: codec::encode(&JournalRecord::Done { n }) });
    }

    /// A source's stream was processed up to this position.
    pub fn cursor(&self, cursor: Cursor) {
        let source = cursor.source.clone();
        self.note(PendingRecord::Cursor { source, line: codec::encode(&JournalRecord::Cursor(cursor)) });
    }

    /// A container is running.
    pub fn running(&self, running: RunningContainer) {
        let (source, container) = (running.source.clone(), running.container.clone());
        self.note(PendingRecord::Running {
            source,
            container,
            line: codec::encode(&JournalRecord::Running(running)),
        });
    }

    /// A container's source does not know it any more.
    pub fn gone(&self, container: ContainerId) {
        let line = codec::encode(&JournalRecord::Gone { container: container.clone() });
        self.note(PendingRecord::Gone { container, line });
    }

    fn note(&self, item: PendingRecord) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        // A full channel means that the writer is busy and takes the notes next.
        drop(self.batches.try_send(Batch { items: Vec::new(), written: None }));
    }
}

#[cfg(test)]
mod tests;
