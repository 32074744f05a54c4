//! What was accepted and is not delivered yet, over the router's own death: docs/operations.md, "The journal".
//!
//! ```text
//!   intake ---- accepted ---> writer (thread) ---> segment files      read (at the start) ---> what to go on with
//!   delivery -- ruled, done ->   live lines          .journal
//!   source ---- cursor, lives ->
//! ```

mod disk;
mod entry;
mod line;
mod live;
mod read;
mod writer;

pub use entry::{Accepted, Cursor, Entry, Lives, Ruled, Segment, ShimLives};
pub use line::Damage;
pub use read::{Damaged, Published, Recovered, Undelivered, read};

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::config;
use crate::counts::JournalCounts;
use crate::ruling::TaskEvent;
use crate::signal::ContainerId;
use disk::Folder;
use entry::Item;
use writer::Writer;

/// Who waits for a write waits at most this long: a disk that hangs must not hold up what happens now.
const PATIENCE: Duration = Duration::from_secs(1);
/// Batches that wait for the writer: two stages hand in one at a time, the rest are wake-ups.
const BATCHES: usize = 16;

/// Lines that somebody waits for.
#[derive(Debug)]
struct Batch {
    items: Vec<Item>,
    written: Option<oneshot::Sender<bool>>,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder cannot be used.
    #[error("cannot use {path} (journal.directory): {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another router has it.
    #[error(
        "another router has {path} (journal.directory): process {pid}; stop it first, or give this one a journal of its own"
    )]
    Taken {
        /// Which.
        path: PathBuf,
        /// Who.
        pid: String,
    },
}

/// Lines that nobody waits for, until the writer takes them. Each is about a signal or container under way, of which there are a bounded number.
type Notes = Mutex<Vec<Item>>;

/// Writes down what happens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    batches: mpsc::Sender<Batch>,
    notes: Arc<Notes>,
    next: Arc<AtomicU64>,
    /// A write took too long, and has not ended yet: nobody else waits for it.
    stalled: Arc<AtomicBool>,
    counts: Arc<JournalCounts>,
}

/// The thread's part of an opened journal.
#[derive(Debug)]
pub struct Thread(Writer<Folder>, mpsc::Receiver<Batch>);

impl Thread {
    /// Writes until every [`Journal`] is gone. Blocks.
    pub fn run(self) {
        self.0.run(self.1);
    }
}

/// Takes a journal's folder, reads what is in it, and begins a new file with what is still to be done.
pub fn open(
    settings: &config::Journal,
    counts: Arc<JournalCounts>,
) -> Result<(Journal, Thread, Recovered), JournalError> {
    let folder = Folder::take(&settings.directory)?;
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let failed = |source| JournalError::Folder { path: settings.directory.clone(), source };
    let (recovered, live) = read::recover(read::files(&settings.directory).map_err(failed)?, &boot);
    let (notes, stalled) = (Arc::new(Notes::default()), Arc::<AtomicBool>::default());
    let mut writer = Writer::new(
        folder,
        boot,
        settings.size,
        Arc::clone(&notes),
        Arc::clone(&stalled),
        Arc::clone(&counts),
    );
    writer.begin(live, recovered.last);
    let (batches, waiting) = mpsc::channel(BATCHES);
    let next = Arc::new(AtomicU64::new(recovered.next));
    let journal = Journal { batches, notes, next, stalled, counts };
    Ok((journal, Thread(writer, waiting), recovered))
}

/// The signals of one batch while they are written.
#[derive(Debug, Default)]
pub struct Accepting(Vec<Item>);

impl Journal {
    /// Adds a signal to a batch; answers its number.
    pub fn accept<'a>(&self, batch: &mut Accepting, entry: impl FnOnce(u64) -> Accepted<'a>) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        batch.0.push(Item::Accepted { n, line: line::encode(&Entry::Accepted(entry(n))) });
        n
    }

    /// Adds a ruling to a batch.
    pub fn rule(&self, batch: &mut Accepting, ruled: Ruled<'_>) {
        let (n, source) = (ruled.n, ruled.source.clone().into_owned());
        let container = ruled.container.clone().into_owned();
        let over = ruled.case.exit.is_some();
        let oom = ruled.events.contains(&TaskEvent::Oom);
        batch.0.push(Item::Ruled {
            n,
            source,
            container,
            over,
            oom,
            line: line::encode(&Entry::Ruled(ruled)),
        });
    }

    /// Writes a batch; false: it is not written, and will not be.
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
                "the journal is not written; what comes now would be told again by its agents only"
            );
        }
        if !written {
            self.counts.unjournaled.more(count);
        }
        written
    }

    async fn wait(&self, items: Vec<Item>) -> bool {
        let (written, heard) = oneshot::channel();
        let whole = async {
            self.batches.send(Batch { items, written: Some(written) }).await.ok()?;
            heard.await.ok()
        };
        match tokio::time::timeout(PATIENCE, whole).await {
            Ok(written) => written.unwrap_or(false),
            Err(_) => {
                // The writer clears it when its write has ended.
                self.stalled.store(true, Ordering::Release);
                false
            }
        }
    }

    /// Nothing more is to be done about a signal.
    pub fn done(&self, n: u64) {
        self.note(Item::Done { n, line: line::encode(&Entry::Done { n }) });
    }

    /// A stream is dealt with up to here.
    pub fn cursor(&self, cursor: Cursor) {
        let source = cursor.source.clone();
        self.note(Item::Cursor { source, line: line::encode(&Entry::Cursor(cursor)) });
    }

    /// A container is there.
    pub fn lives(&self, lives: Lives) {
        let (source, container) = (lives.source.clone(), lives.container.clone());
        self.note(Item::Lives { source, container, line: line::encode(&Entry::Lives(lives)) });
    }

    /// A container's source does not know it any more.
    pub fn gone(&self, container: ContainerId) {
        let line = line::encode(&Entry::Gone { container: container.clone() });
        self.note(Item::Gone { container, line });
    }

    fn note(&self, item: Item) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        // Full: the writer has something to do, and takes the notes then.
        drop(self.batches.try_send(Batch { items: Vec::new(), written: None }));
    }
}

#[cfg(test)]
mod tests;
