//! What `coroner tap` reads: the latest audit records, kept only while somebody reads them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::audit::Record;

/// Records kept for readers between two of their calls. A reader asks again at once; one that is stopped for a second in a storm of
/// thousands a second still finds all. Without a bound a reader that was stopped for good would have the router keep everything.
const RECORDS: usize = 4096;
/// Bytes of them. Most are 2 KiB, but one with every report that a policy may give is a hundred times that.
const BYTES: usize = 8 << 20;
/// Bytes of one answer, and of a record that is kept at all: ttrpc takes 4 MiB in a message, and refuses the whole answer past that.
const PAGE: usize = 1 << 20;
/// The longest wait of one call; a reader asks again.
const WAIT: Duration = Duration::from_secs(30);
/// Records are kept for so long after the last call: a reader prints between two of them, and its terminal may be slow.
const GRACE: Duration = Duration::from_secs(10);

/// Why the lock can be taken.
const UNPOISONED: &str = "nothing panics under this lock";

/// The records of now, for whoever reads along. While nobody does, a record costs one addition.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Somebody reads, or did a moment ago.
    open: AtomicBool,
    /// How many records were told, kept or not: each one's number, so that a reader learns how many it missed.
    told: AtomicU64,
    ring: Mutex<Ring>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Whom the rulings in `entries` are about, by signal id: a delivery is told with nothing but that.
    ruled: HashMap<Arc<str>, Arc<Who>>,
    /// Nobody is expected to read after it.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    line: Arc<str>,
    who: Option<Arc<Who>>,
    ruled: Option<Arc<str>>,
}

#[derive(Debug)]
struct Who {
    container: String,
    pod: Option<String>,
    namespace: Option<String>,
    kind: Option<&'static str>,
}

/// What a record that is to be kept is about.
#[derive(Debug)]
pub struct About(Subject);

#[derive(Debug)]
enum Subject {
    Ruled { id: Arc<str>, who: Arc<Who> },
    Delivered { id: String },
    Other,
}

/// Which records a reader wants; `None`: all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of containers whose id begins so.
    pub container: Option<String>,
    /// Of this pod.
    pub pod: Option<String>,
    /// Of pods in this namespace.
    pub namespace: Option<String>,
    /// Of signals of this kind.
    pub kind: Option<String>,
}

/// What there was to read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order they were told.
    pub records: Vec<Arc<str>>,
    /// Where the next page begins.
    pub next: u64,
    /// Records before `next` that are not kept any more.
    pub missed: u64,
}

impl Tap {
    /// What a record is about, if it is to be kept: to be handed to [`Tap::keep`] with its line.
    pub fn wants(&self, record: &Record) -> Option<About> {
        if !self.0.open.load(Ordering::Relaxed) {
            self.0.told.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(About(match record {
            Record::Ruled(ruled) => {
                let target = &ruled.signal.target;
                let owner = target.owner.as_ref();
                let who = Who {
                    container: target.container_id.to_string(),
                    pod: owner.and_then(|it| it.pod.clone()),
                    namespace: owner.and_then(|it| it.namespace.clone()),
                    kind: Some(ruled.signal.event.kind()),
                };
                Subject::Ruled { id: ruled.signal.id.as_str().into(), who: Arc::new(who) }
            }
            Record::Delivered(delivered) => Subject::Delivered { id: delivered.id.clone() },
            // Chains and starts are about no container.
            _ => Subject::Other,
        }))
    }

    /// Keeps a line, for as long as readers may come for it. The lock is one that readers take too, for a page: it is never taken while
    /// nobody reads.
    pub fn keep(&self, about: About, line: &Arc<str>) {
        let mut ring = self.ring();
        let number = self.0.told.fetch_add(1, Ordering::Relaxed) + 1;
        if ring.until.is_none_or(|until| until < Instant::now()) {
            self.0.open.store(false, Ordering::Relaxed);
            *ring = Ring::default();
        } else if line.len() <= PAGE {
            ring.push(number, about.0, line);
        }
        drop(ring);
        self.0.news.notify_waiters();
    }

    /// The records after `after` that `filter` takes; waits for some, at most for `wait` or until the router stops.
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
            let news = self.0.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let page = self.page(after, filter, deadline + GRACE);
            if !page.records.is_empty() || page.missed > 0 {
                return page;
            }
            after = Some(page.next);
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep_until(deadline) => return page,
                _ = stop.wait_for(|it| *it) => return page,
            }
        }
    }

    fn page(&self, after: Option<u64>, filter: &Filter, until: Instant) -> Page {
        let mut ring = self.ring();
        ring.until = ring.until.max(Some(until));
        self.0.open.store(true, Ordering::Relaxed);
        let last = self.0.told.load(Ordering::Relaxed);
        // A cursor beyond the last record is one of another router's: this reader begins anew.
        let after = after.filter(|after| *after <= last).unwrap_or(last);
        let mut page = Page { records: Vec::new(), next: last, missed: 0 };
        let (mut seen, mut bytes) = (0, 0);
        let from = ring.entries.partition_point(|entry| entry.number <= after);
        for entry in ring.entries.range(from..) {
            if filter.takes(entry.who.as_deref()) {
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
        let (who, ruled) = match subject {
            Subject::Ruled { id, who } => {
                self.ruled.insert(Arc::clone(&id), Arc::clone(&who));
                (Some(who), Some(id))
            }
            Subject::Delivered { id } => (self.ruled.get(id.as_str()).cloned().or_else(|| of_id(&id)), None),
            Subject::Other => (None, None),
        };
        self.bytes += line.len();
        self.entries.push_back(Entry { number, line: Arc::clone(line), who, ruled });
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

/// Whom a delivery is about whose ruling was told before anybody read: its container is in its id, the rest is not known.
fn of_id(id: &str) -> Option<Arc<Who>> {
    let container = id.rsplit(':').nth(1)?.to_owned();
    Some(Arc::new(Who { container, pod: None, namespace: None, kind: None }))
}

impl Filter {
    fn takes(&self, who: Option<&Who>) -> bool {
        let Some(who) = who else {
            return [&self.container, &self.pod, &self.namespace, &self.kind].iter().all(|it| it.is_none());
        };
        let is = |wanted: &Option<String>, it: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| it == Some(wanted))
        };
        self.container.as_ref().is_none_or(|start| who.container.starts_with(start.as_str()))
            && is(&self.pod, who.pod.as_deref())
            && is(&self.namespace, who.namespace.as_deref())
            && is(&self.kind, who.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Delivered, DeliveredOutcome, Line};
    use crate::signal::{ContainerId, Owner};

    static RECORDING: &str = include_str!("demo/recording.jsonl");

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

    fn tell(tap: &Tap, record: Record) {
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
    fn nothing_is_kept_while_nobody_reads_and_all_is_counted() {
        let tap = Tap::default();
        tell(&tap, ruled("a", "web", 0));
        assert!(tap.ring().entries.is_empty());
        assert_eq!(page(&tap, Some(0), &Filter::default()), Page { records: vec![], next: 1, missed: 1 });
        tell(&tap, delivered("a"));
        assert_eq!(page(&tap, Some(1), &Filter::default()).records.len(), 1);
        // The reader is gone for good: the first record after its time clears the ring.
        tap.ring().until = Some(Instant::now() - Duration::from_millis(1));
        tell(&tap, delivered("a"));
        assert!(tap.ring().entries.is_empty() && tap.ring().bytes == 0);
        assert!(tap.wants(&delivered("a")).is_none());
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_many_it_missed() {
        let tap = Tap::default();
        let begin = page(&tap, None, &Filter::default());
        for _ in 0..RECORDS + 7 {
            tell(&tap, delivered("a"));
        }
        let behind = page(&tap, Some(begin.next), &Filter::default());
        assert_eq!((behind.missed, behind.records.len()), (7, RECORDS));
        // By bytes too; a record that fits no answer is missed, and an answer holds no more than fits.
        for because in [PAGE, PAGE / 2, PAGE / 3, PAGE / 2] {
            tell(&tap, ruled("a", "web", because));
        }
        let first = page(&tap, Some(behind.next), &Filter::default());
        assert_eq!((first.missed, first.records.len()), (1, 2));
        let rest = page(&tap, Some(first.next), &Filter::default());
        assert_eq!((rest.missed, rest.records.len()), (0, 1));
        for _ in 0..20 {
            tell(&tap, ruled("a", "web", PAGE / 2));
        }
        assert!(tap.ring().bytes <= BYTES);
        assert!(page(&tap, Some(rest.next), &Filter::default()).missed > 0);
        // Another router's cursor.
        assert_eq!(page(&tap, Some(1 << 40), &Filter::default()).records.len(), 0);
    }

    #[test]
    fn deliveries_are_taken_with_the_ruling_they_belong_to() {
        let tap = Tap::default();
        let begin = page(&tap, None, &Filter::default()).next;
        for record in [ruled("abc", "web", 0), ruled("xyz", "job", 0), delivered("abc"), delivered("old")] {
            tell(&tap, record);
        }
        let of = |filter: &Filter| page(&tap, Some(begin), filter).records.len();
        assert_eq!(of(&Filter::default()), 4);
        assert_eq!(of(&by(|it| it.pod = Some("web".to_owned()))), 2);
        assert_eq!(of(&by(|it| it.container = Some("ab".to_owned()))), 2);
        assert_eq!(of(&by(|it| it.container = Some("old".to_owned()))), 1, "its id tells the container");
        assert_eq!(of(&by(|it| it.kind = Some("oom-kill".to_owned()))), 3);
        assert_eq!(of(&by(|it| it.namespace = Some("shop".to_owned()))), 3);
        assert_eq!(of(&by(|it| (it.pod, it.kind) = (Some("web".into()), Some("exited".into())))), 0);
    }

    #[tokio::test]
    async fn a_reader_waits_for_news_and_not_past_the_end_of_the_router() {
        let tap = Tap::default();
        let (stop, stopped) = watch::channel(false);
        let filter = Filter::default();
        let begin = tap.read(None, &filter, Duration::ZERO, stopped.clone()).await.next;
        let read = tap.read(Some(begin), &filter, WAIT, stopped.clone());
        let (page, ()) = tokio::join!(read, async { tell(&tap, delivered("a")) });
        assert_eq!(page.records.len(), 1);
        let read = tap.read(Some(page.next), &filter, WAIT, stopped);
        let stopped = async { assert!(!stop.send_replace(true)) };
        let ended = tokio::time::timeout(WAIT / 2, async { tokio::join!(read, stopped).0 }).await;
        assert_eq!(ended.unwrap().records.len(), 0);
    }
}
