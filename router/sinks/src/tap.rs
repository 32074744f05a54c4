//! The tap: the latest audit records for `coroner tap`, kept only while a reader is connected.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use coroner_core::audit::Record;

/// Records kept between two requests of a reader, which follow each other at once. A reader that
/// pauses for a second still finds all records of a burst. Without a bound a reader that hangs
/// would have the router keep everything.
const RECORDS: usize = 4096;
/// Bytes of them. Most records have 2 KiB, but one with all reports that a policy may make has a
/// hundred times that.
const BYTES: usize = 8 << 20;
/// Bytes of one page, and of one record. Without a limit a reader that hangs could have the whole
/// ring in its response.
const PAGE: usize = 1 << 20;
/// Long-poll timeout of one request; the reader then sends another.
const WAIT: Duration = Duration::from_secs(30);
/// Records are kept for this long after the last request: a reader prints between two requests, and
/// its terminal may be slow.
const GRACE: Duration = Duration::from_secs(10);

/// Why the lock cannot be poisoned.
const UNPOISONED: &str = "nothing panics under this lock";

/// The current records, for readers. Without a reader a record costs one addition.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<TapState>);

#[derive(Debug, Default)]
struct TapState {
    /// A reader is connected, or was within the grace time.
    open: AtomicBool,
    /// Number of records so far, kept or not. It is the number of the last one, from which a reader
    /// computes how many it missed.
    recorded: AtomicU64,
    ring: Mutex<Ring>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Targets of the rulings in `entries` by signal id: the record of a delivery has only that id.
    ruled: HashMap<Arc<str>, Arc<RecordTarget>>,
    /// End of the grace time.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    line: Arc<str>,
    target: Option<Arc<RecordTarget>>,
    ruled: Option<Arc<str>>,
}

#[derive(Debug)]
struct RecordTarget {
    container: String,
    pod: Option<String>,
    namespace: Option<String>,
    kind: Option<&'static str>,
}

/// What a record is about; only for records to be kept.
#[derive(Debug)]
pub struct TapSubject(Subject);

#[derive(Debug)]
enum Subject {
    Ruled { id: Arc<str>, target: Arc<RecordTarget> },
    Delivered { id: String },
    Other,
}

/// Filter of a reader; `None`: all records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Prefix of the container's id.
    pub container: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The kind of signal.
    pub kind: Option<String>,
}

/// The result of one read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order in which they were recorded.
    pub records: Vec<Arc<str>>,
    /// Cursor of the next page.
    pub next: u64,
    /// Number of records before `next` that are no longer kept.
    pub missed: u64,
}

impl Tap {
    /// What a record is about, if it is to be kept: the argument of [`Tap::keep`].
    pub fn wants(&self, record: &Record) -> Option<TapSubject> {
        if !self.0.open.load(Ordering::Relaxed) {
            self.0.recorded.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(TapSubject(match record {
            Record::Ruled(ruled) => {
                let ruled_target = &ruled.signal.target;
                let owner = ruled_target.owner.as_ref();
                let target = RecordTarget {
                    container: ruled_target.container_id.to_string(),
                    pod: owner.and_then(|it| it.pod.clone()),
                    namespace: owner.and_then(|it| it.namespace.clone()),
                    kind: Some(ruled.signal.event.kind()),
                };
                Subject::Ruled { id: ruled.signal.id.as_str().into(), target: Arc::new(target) }
            }
            Record::Delivered(delivered) => Subject::Delivered { id: delivered.id.clone() },
            // Records of chains and starts have no container.
            _ => Subject::Other,
        }))
    }

    /// Keeps a line for the readers. Readers take the same lock for a page; without a reader it is
    /// never taken.
    pub fn keep(&self, about: TapSubject, line: &Arc<str>) {
        let mut ring = self.ring();
        let number = self.0.recorded.fetch_add(1, Ordering::Relaxed) + 1;
        if ring.until.is_none_or(|until| until < Instant::now()) {
            self.0.open.store(false, Ordering::Relaxed);
            *ring = Ring::default();
        } else if line.len() <= PAGE {
            ring.push(number, about.0, line);
        }
        drop(ring);
        self.0.added.notify_waiters();
    }

    /// The records after `after` that `filter` takes. Waits for a record, at most for `wait` or
    /// until the router stops.
    pub async fn read(
        &self,
        after: Option<u64>,
        filter: &Filter,
        wait: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Page {
        let deadline = Instant::now() + wait.min(WAIT);
        let mut after = after;
        loop {
            let added = self.0.added.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            let page = self.page(after, filter, deadline + GRACE);
            if !page.records.is_empty() || page.missed > 0 {
                return page;
            }
            after = Some(page.next);
            tokio::select! {
                () = added => {}
                () = tokio::time::sleep_until(deadline) => return page,
                _ = stop.wait_for(|it| *it) => return page,
            }
        }
    }

    fn page(&self, after: Option<u64>, filter: &Filter, until: Instant) -> Page {
        let mut ring = self.ring();
        ring.until = ring.until.max(Some(until));
        self.0.open.store(true, Ordering::Relaxed);
        let last = self.0.recorded.load(Ordering::Relaxed);
        // A cursor beyond the last record comes from an earlier router process: this reader starts
        // at the end.
        let after = after.filter(|after| *after <= last).unwrap_or(last);
        let mut page = Page { records: Vec::new(), next: last, missed: 0 };
        let (mut seen, mut bytes) = (0, 0);
        let from = ring.entries.partition_point(|entry| entry.number <= after);
        for entry in ring.entries.range(from..) {
            if filter.takes(entry.target.as_deref()) {
                if bytes + entry.line.len() > PAGE {
                    page.next = entry.number - 1;
                    break;
                }
                bytes += entry.line.len();
                page.records.push(Arc::clone(&entry.line));
            }
            seen += 1;
        }
        page.missed = page.next - after - seen;
        page
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().expect(UNPOISONED)
    }
}

impl Ring {
    fn push(&mut self, number: u64, subject: Subject, line: &Arc<str>) {
        let (target, ruled) = match subject {
            Subject::Ruled { id, target } => {
                self.ruled.insert(Arc::clone(&id), Arc::clone(&target));
                (Some(target), Some(id))
            }
            Subject::Delivered { id } => (self.ruled.get(id.as_str()).cloned().or_else(|| of_id(&id)), None),
            Subject::Other => (None, None),
        };
        self.bytes += line.len();
        self.entries.push_back(Entry { number, line: Arc::clone(line), target, ruled });
        while (self.entries.len() > RECORDS || self.bytes > BYTES)
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.line.len();
            if let Some(id) = oldest.ruled {
                self.ruled.remove(&id);
            }
        }
    }
}

/// The target of a delivery without a kept ruling: the id has the container, the rest is unknown.
fn of_id(id: &str) -> Option<Arc<RecordTarget>> {
    let container = id.rsplit(':').nth(1)?.to_owned();
    Some(Arc::new(RecordTarget { container, pod: None, namespace: None, kind: None }))
}

impl Filter {
    fn takes(&self, target: Option<&RecordTarget>) -> bool {
        let Some(target) = target else {
            return [&self.container, &self.pod, &self.namespace, &self.kind].iter().all(|it| it.is_none());
        };
        let is = |wanted: &Option<String>, it: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| it == Some(wanted))
        };
        self.container.as_ref().is_none_or(|start| target.container.starts_with(start.as_str()))
            && is(&self.pod, target.pod.as_deref())
            && is(&self.namespace, target.namespace.as_deref())
            && is(&self.kind, target.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::audit::{Delivered, DeliveredOutcome, Line};
    use coroner_core::signal::{ContainerId, Owner};

    static RECORDING: &str = include_str!("../../cli/src/demo/recording.jsonl");

    /// A ruling on a kill of this container of a pod.
    fn ruled(container: &str, pod: &str, because: usize) -> Record {
        let Line { record, .. } = serde_json::from_str(RECORDING.lines().next().unwrap()).unwrap();
        let Record::Ruled(mut ruled) = record else { panic!("the recording begins with a ruling") };
        ruled.signal.target.container_id = ContainerId::try_from(container.to_owned()).unwrap();
        ruled.signal.id = format!("n::s:{container}:1");
        let owner =
            Owner { pod: Some(pod.to_owned()), namespace: Some("shop".to_owned()), ..Owner::default() };
        ruled.signal.target.owner = Some(owner);
        ruled.illegal = Some("x".repeat(because));
        Record::Ruled(ruled)
    }

    fn delivered(container: &str) -> Record {
        Record::Delivered(Delivered {
            id: format!("n::s:{container}:1"),
            sink: "containerd".to_owned(),
            topic: "/tasks/oom".to_owned(),
            outcome: DeliveredOutcome::Acked,
            attempts: 1,
            waited_ms: 1,
            error: None,
        })
    }

    fn record(tap: &Tap, record: Record) {
        if let Some(about) = tap.wants(&record) {
            tap.keep(about, &record.to_line().into());
        }
    }

    fn page(tap: &Tap, after: Option<u64>, filter: &Filter) -> Page {
        tap.page(after, filter, Instant::now() + GRACE)
    }

    fn by(filter: impl FnOnce(&mut Filter)) -> Filter {
        let mut all = Filter::default();
        filter(&mut all);
        all
    }

    #[test]
    fn record_without_reader_counted_but_not_kept() {
        let tap = Tap::default();
        record(&tap, ruled("a", "web", 0));
        assert!(tap.ring().entries.is_empty());
        assert_eq!(page(&tap, Some(0), &Filter::default()), Page { records: vec![], next: 1, missed: 1 });
        record(&tap, delivered("a"));
        assert_eq!(page(&tap, Some(1), &Filter::default()).records.len(), 1);
        // The reader has left: the first record after the grace time clears the ring.
        tap.ring().until = Some(Instant::now() - Duration::from_millis(1));
        record(&tap, delivered("a"));
        assert!(tap.ring().entries.is_empty() && tap.ring().bytes == 0);
        assert!(tap.wants(&delivered("a")).is_none());
    }

    #[test]
    fn slow_reader_receives_number_of_missed_records() {
        let tap = Tap::default();
        let begin = page(&tap, None, &Filter::default());
        for _ in 0..RECORDS + 7 {
            record(&tap, delivered("a"));
        }
        let behind = page(&tap, Some(begin.next), &Filter::default());
        assert_eq!((behind.missed, behind.records.len()), (7, RECORDS));
        // By bytes too: a record larger than a page is missed, and a page is never larger than its
        // limit.
        for because in [PAGE, PAGE / 2, PAGE / 3, PAGE / 2] {
            record(&tap, ruled("a", "web", because));
        }
        let first = page(&tap, Some(behind.next), &Filter::default());
        assert_eq!((first.missed, first.records.len()), (1, 2));
        let rest = page(&tap, Some(first.next), &Filter::default());
        assert_eq!((rest.missed, rest.records.len()), (0, 1));
        for _ in 0..20 {
            record(&tap, ruled("a", "web", PAGE / 2));
        }
        assert!(tap.ring().bytes <= BYTES);
        assert!(page(&tap, Some(rest.next), &Filter::default()).missed > 0);
        // A cursor of another router process.
        assert_eq!(page(&tap, Some(1 << 40), &Filter::default()).records.len(), 0);
    }

    #[test]
    fn delivery_filtered_by_target_of_its_ruling() {
        let tap = Tap::default();
        let begin = page(&tap, None, &Filter::default()).next;
        for it in [ruled("abc", "web", 0), ruled("xyz", "job", 0), delivered("abc"), delivered("old")] {
            record(&tap, it);
        }
        let of = |filter: &Filter| page(&tap, Some(begin), filter).records.len();
        assert_eq!(of(&Filter::default()), 4);
        assert_eq!(of(&by(|it| it.pod = Some("web".to_owned()))), 2);
        assert_eq!(of(&by(|it| it.container = Some("ab".to_owned()))), 2);
        assert_eq!(of(&by(|it| it.container = Some("old".to_owned()))), 1, "its id contains the container's");
        assert_eq!(of(&by(|it| it.kind = Some("oom-kill".to_owned()))), 3);
        assert_eq!(of(&by(|it| it.namespace = Some("shop".to_owned()))), 3);
        assert_eq!(of(&by(|it| (it.pod, it.kind) = (Some("web".into()), Some("exited".into())))), 0);
    }

    #[tokio::test]
    async fn read_waits_for_record_and_ends_at_shutdown() {
        let tap = Tap::default();
        let (stop, stopped) = watch::channel(false);
        let filter = Filter::default();
        let begin = tap.read(None, &filter, Duration::ZERO, stopped.clone()).await.next;
        let read = tap.read(Some(begin), &filter, WAIT, stopped.clone());
        let (page, ()) = tokio::join!(read, async { record(&tap, delivered("a")) });
        assert_eq!(page.records.len(), 1);
        let read = tap.read(Some(page.next), &filter, WAIT, stopped);
        let stopped = async { assert!(!stop.send_replace(true)) };
        let ended = tokio::time::timeout(WAIT / 2, async { tokio::join!(read, stopped).0 }).await;
        assert_eq!(ended.unwrap().records.len(), 0);
    }
}
