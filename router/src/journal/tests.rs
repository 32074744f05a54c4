use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::disk::Disk;
use super::read::Read;
use super::*;
use crate::case::{Case, Known};
use crate::config::Mode;
use crate::signal::Signal;
use crate::signal::{Event, Exited, Moment, OomKill, Target};

const BOOT: &str = "this-boot";

fn id(name: &str) -> ContainerId {
    ContainerId::try_from(name.to_owned()).unwrap()
}

fn signal(n: u64, container: &str, exits: bool) -> Signal {
    let kill = OomKill {
        added: Some(1),
        total: Some(n),
        evidence: crate::signal::Evidence::Counter,
        group: None,
        level: crate::signal::Level::Container,
        cgroup: Some("/a \"b\"\n".to_owned()),
        limit_bytes: None,
        victim: None,
        late: false,
    };
    let exit = Exited {
        pid: None,
        is_init: None,
        status: Some(137),
        signal: None,
        core: None,
        at_ns: None,
        reconciled: false,
    };
    Signal {
        id: format!("n::s:{container}:{n}"),
        at: Moment { boot_ns: Some(n), wall_ms: None, received_ms: n },
        target: Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: id(container),
            exec_id: None,
            owner: None,
        },
        event: if exits { Event::Exited(exit) } else { Event::OomKill(kill) },
        attributes: Vec::new(),
    }
}

fn accepted(n: u64, signal: &Signal) -> Item {
    let entry = Accepted {
        n,
        source: "agent".into(),
        mode: Mode::Sole,
        known: Cow::Owned(vec![Known::KillCount]),
        usage_bytes: None,
        signal: Cow::Borrowed(signal),
    };
    Item::Accepted { n, line: line::encode(&Entry::Accepted(entry)) }
}

fn ruled(n: u64, signal: &Signal) -> Item {
    let mut case = Case::new(&[Known::KillCount]);
    case.learn(signal, &[crate::ruling::Action::TaskOom]);
    let events = [TaskEvent::Oom];
    let entry = Ruled {
        n,
        id: Cow::Borrowed(&signal.id),
        source: "agent".into(),
        container: Cow::Borrowed(&signal.target.container_id),
        namespace: "k8s.io".into(),
        at_ms: n,
        events: Cow::Borrowed(&events),
        case: Cow::Borrowed(&case),
    };
    let (over, container) = (case.exit.is_some(), signal.target.container_id.clone());
    Item::Ruled {
        n,
        source: "agent".to_owned(),
        container,
        over,
        oom: true,
        line: line::encode(&Entry::Ruled(entry)),
    }
}

/// Files in memory, that end in the middle of a step when there are no more steps.
#[derive(Debug)]
struct Cut {
    shown: BTreeMap<u64, Vec<u8>>,
    partial: Option<(u64, Vec<u8>)>,
    current: Option<u64>,
    steps: usize,
    /// Of the bytes of the last step, how many are there: a half, none, or all though it says that it failed.
    kept: fn(usize) -> usize,
    full: bool,
}

impl Cut {
    fn new(steps: usize, kept: fn(usize) -> usize) -> Self {
        Self { shown: BTreeMap::new(), partial: None, current: None, steps, kept, full: false }
    }

    fn step(&mut self) -> io::Result<()> {
        let left = self.steps.checked_sub(1).ok_or_else(|| io::Error::other("cut"))?;
        self.steps = left;
        Ok(())
    }

    fn files(&self) -> Vec<Read> {
        let read = |(number, bytes): (&u64, &Vec<u8>)| Read {
            number: *number,
            path: PathBuf::from(format!("{number}")),
            bytes: bytes.clone(),
        };
        self.shown.iter().map(read).collect()
    }
}

impl Disk for Cut {
    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.step()?;
        self.partial = Some((number, Vec::new()));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (last, alive) = (self.steps == 1, self.steps > 0);
        let kept = if last { (self.kept)(bytes.len()) } else { bytes.len() };
        if alive && !self.full {
            let current = self.current;
            let file = match &mut self.partial {
                Some((_, file)) => file,
                None => self.shown.get_mut(&current.expect("a file")).expect("it is there"),
            };
            file.extend_from_slice(&bytes[..kept]);
        }
        self.step()?;
        if last || self.full { Err(io::Error::other("no space left")) } else { Ok(()) }
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.step()?;
        let current = self.current.expect("a file");
        self.shown.get_mut(&current).expect("it is there").truncate(usize::try_from(length).unwrap());
        Ok(())
    }

    fn show(&mut self, number: u64) -> io::Result<()> {
        self.step()?;
        let (_, bytes) = self.partial.take().expect("begun");
        self.shown.insert(number, bytes);
        self.current = Some(number);
        Ok(())
    }

    fn go_back(&mut self) {
        self.partial = None;
    }

    fn remove_before(&mut self, number: u64) -> io::Result<()> {
        self.step()?;
        self.shown.retain(|it, _| *it >= number);
        Ok(())
    }
}

fn writer(disk: Cut) -> Writer<Cut> {
    let counts = Arc::<JournalCounts>::default();
    let mut writer = Writer::new(disk, BOOT.to_owned(), 64 << 20, Arc::default(), Arc::default(), counts);
    writer.begin(live::Live::default(), 0);
    writer
}

/// Hands in a batch, and answers what the writer says of it.
fn hand_in(writer: &mut Writer<Cut>, items: Vec<Item>) -> bool {
    let (written, mut heard) = oneshot::channel();
    writer.write(vec![Batch { items, written: Some(written) }]);
    heard.try_recv().unwrap_or(false)
}

#[test]
fn whatever_step_is_the_last_nothing_that_was_told_to_be_written_is_lost() {
    let halves: [fn(usize) -> usize; 4] = [|_| 0, |all| all / 2, |all| all.saturating_sub(1), |all| all];
    let mut cuts = 0;
    for steps in 0..160 {
        for kept in halves {
            let mut writer = writer(Cut::new(steps, kept));
            // A file is followed by another every few batches.
            writer.segment = 3000;
            let (mut sure, mut done) = (Vec::new(), Vec::new());
            for n in 1..40_u64 {
                let signal = signal(n, &format!("c{}", n % 7), n % 3 == 0);
                if hand_in(&mut writer, vec![accepted(n, &signal)]) {
                    sure.push(n);
                }
                if n % 2 == 0 {
                    hand_in(&mut writer, vec![ruled(n, &signal)]);
                }
                if n % 4 == 0 {
                    let line = line::encode(&Entry::Done { n });
                    writer.notes.lock().unwrap().push(Item::Done { n, line });
                    done.push(n);
                }
            }
            let (recovered, _) = read::recover(writer.disk.files(), BOOT);
            let open: Vec<u64> = recovered
                .unruled
                .iter()
                .map(|it| it.n)
                .chain(recovered.undelivered.iter().map(|it| it.ruled.n))
                .collect();
            for n in sure.iter().filter(|n| !done.contains(n)) {
                assert!(open.contains(n), "{n} is lost after {steps} steps");
            }
            assert!(open.iter().all(|n| (1..40).contains(n)), "nothing is made up");
            assert!(open.iter().all(|n| recovered.next > *n), "numbers are given once");
            cuts += usize::from(writer.disk.steps == 0);
        }
    }
    assert!(cuts > 200, "most runs were cut short: {cuts}");
}

#[test]
fn every_whole_record_is_kept_whatever_is_cut_off_or_flipped() {
    let mut random = StdRng::seed_from_u64(7);
    let lines: Vec<Vec<u8>> = (1..60_u64)
        .map(|n| {
            let signal = signal(n, &format!("c{n}"), n % 2 == 0);
            let item = if n % 3 == 0 { ruled(n, &signal) } else { accepted(n, &signal) };
            item.line().to_vec()
        })
        .collect();
    let whole = lines.concat();
    assert_eq!(line::decode(&whole).0.len(), lines.len());
    for round in 0..1000 {
        let mut bytes = whole.clone();
        let mut hit = std::collections::BTreeSet::new();
        let line_at = |at: usize| {
            let mut end = 0;
            lines.iter().position(|line| {
                end += line.len();
                at < end
            })
        };
        if round % 2 == 0 {
            bytes.truncate(random.random_range(0..whole.len()));
            hit.extend(line_at(bytes.len()).into_iter().flat_map(|first| first..lines.len()));
        } else {
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
                hit.extend(line_at(at));
            }
        }
        let (entries, damage) = line::decode(&bytes);
        for (at, line) in lines.iter().enumerate().filter(|(at, _)| !hit.contains(at)) {
            let entry = line::decode(line).0.pop().unwrap();
            assert!(entries.contains(&entry), "round {round}: record {at} was whole");
        }
        let named: usize = damage.iter().map(|it| it.bytes).sum();
        // Of a damaged line its line feed may be what was damaged: then the record is whole.
        let left_out = lines.len() - entries.len();
        assert!(entries.len() <= lines.len() && left_out <= hit.len(), "round {round}");
        let kept: usize = entries.iter().map(|entry| line::encode(entry).len()).sum();
        // But for the line feed that ends a damaged one.
        assert!(kept + named + damage.len() >= bytes.len(), "round {round}: what is left out is named");
        assert!(damage.iter().all(|it| it.offset + it.bytes <= bytes.len()));
    }
}

#[test]
fn a_new_file_says_what_all_before_it_said() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    writer.segment = 2000;
    let signals: Vec<Signal> = (1..200).map(|n| signal(n, &format!("c{}", n % 5), false)).collect();
    for signal in &signals {
        let n = signal.at.received_ms;
        assert!(hand_in(&mut writer, vec![accepted(n, signal)]));
        assert!(hand_in(&mut writer, vec![ruled(n, signal)]));
        if n != 77 {
            writer.notes.lock().unwrap().push(Item::Done { n, line: line::encode(&Entry::Done { n }) });
        }
    }
    let cursor = |seq| Cursor { source: "agent".to_owned(), stream: "s".to_owned(), seq };
    for seq in [4, 9] {
        let line = line::encode(&Entry::Cursor(cursor(seq)));
        writer.notes.lock().unwrap().push(Item::Cursor { source: "agent".to_owned(), line });
    }
    let lives = Lives {
        source: "agent".to_owned(),
        stream: "s".to_owned(),
        container: id("c9"),
        kills_total: Some(1),
        shim: None,
    };
    let line = line::encode(&Entry::Lives(lives.clone()));
    writer.notes.lock().unwrap().push(Item::Lives { source: "agent".to_owned(), container: id("c9"), line });
    writer.write(Vec::new());
    assert!(writer.number > 10, "{} files", writer.number);
    assert_eq!(writer.disk.shown.len(), 1, "those before it are removed");
    let check = |files: Vec<Read>| {
        let (recovered, live) = read::recover(files, BOOT);
        assert_eq!(recovered.unruled, []);
        assert_eq!(recovered.undelivered.iter().map(|it| it.ruled.n).collect::<Vec<_>>(), [77]);
        assert_eq!(recovered.cases.len(), 5);
        let totals: Vec<_> = recovered.cases.iter().map(|(_, _, case)| case.kills_total().unwrap()).collect();
        assert_eq!(totals, [195, 196, 197, 198, 199], "the last of each");
        assert_eq!(recovered.cursors["agent"], cursor(9));
        assert_eq!(recovered.lives, std::slice::from_ref(&lives));
        assert_eq!(recovered.published.len(), 5);
        live
    };
    let live = check(writer.disk.files());
    // Begun anew with it, and read once more.
    let again = Read { number: 1, path: PathBuf::new(), bytes: live.lines() };
    check(vec![again]);
}

#[test]
fn a_container_whose_end_is_accepted_lives_no_more() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    for name in ["c1", "c2", "c3"] {
        let lives = Lives {
            source: "agent".to_owned(),
            stream: "s".to_owned(),
            container: id(name),
            kills_total: None,
            shim: None,
        };
        let line = line::encode(&Entry::Lives(lives));
        writer.notes.lock().unwrap().push(Item::Lives {
            source: "agent".to_owned(),
            container: id(name),
            line,
        });
    }
    let mut exec = signal(2, "c2", true);
    exec.target.exec_id = Some("e1".to_owned());
    let taken =
        vec![accepted(1, &signal(1, "c1", true)), accepted(2, &exec), accepted(3, &signal(3, "c3", false))];
    assert!(hand_in(&mut writer, taken));
    let (recovered, _) = read::recover(writer.disk.files(), BOOT);
    let mut lives: Vec<String> = recovered.lives.iter().map(|it| it.container.to_string()).collect();
    lives.sort();
    assert_eq!(lives, ["c2", "c3"], "an exec's end, and a kill, are no end of a container");
}

#[test]
fn a_full_disk_is_said_and_what_comes_after_it_is_written() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    assert!(hand_in(&mut writer, vec![accepted(1, &signal(1, "c1", false))]));
    writer.disk.full = true;
    assert!(!hand_in(&mut writer, vec![accepted(2, &signal(2, "c2", false))]));
    writer.notes.lock().unwrap().push(Item::Done { n: 1, line: line::encode(&Entry::Done { n: 1 }) });
    assert!(!hand_in(&mut writer, vec![accepted(3, &signal(3, "c3", false))]));
    assert!(writer.counts.failing.load(Ordering::Relaxed));
    writer.disk.full = false;
    assert!(hand_in(&mut writer, vec![accepted(4, &signal(4, "c4", false))]));
    assert!(!writer.counts.failing.load(Ordering::Relaxed));
    let (recovered, _) = read::recover(writer.disk.files(), BOOT);
    // 1 was done while nothing could be written, 2 and 3 were told not to be there.
    assert_eq!(recovered.unruled.iter().map(|it| it.n).collect::<Vec<_>>(), [4]);
    assert_eq!(recovered.damage, []);
}

#[test]
fn a_journal_stays_below_its_size() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    writer.size = 20_000;
    let mut refused = 0;
    for n in 1..200 {
        refused += usize::from(!hand_in(&mut writer, vec![accepted(n, &signal(n, &format!("c{n}"), false))]));
        assert!(writer.disk.shown.values().map(Vec::len).sum::<usize>() <= 20_000);
    }
    assert!(refused > 100, "nothing is ever done with: {refused}");
}

#[test]
fn a_journal_of_another_boot_says_nothing() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    assert!(hand_in(&mut writer, vec![accepted(1, &signal(1, "c1", false))]));
    assert_eq!(read::recover(writer.disk.files(), BOOT).0.unruled.len(), 1);
    assert_eq!(read::recover(writer.disk.files(), "another").0.unruled, []);
}

#[tokio::test]
async fn one_router_at_a_time_has_a_journal_and_the_next_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config::Journal { directory: folder.path().join("journal"), size: 16 << 20 };
    let (journal, thread, recovered) = open(&settings, Arc::default()).unwrap();
    assert!(recovered.ids.is_empty());
    let writing = std::thread::spawn(move || thread.run());
    let second = open(&settings, Arc::default()).unwrap_err().to_string();
    assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
    let signal = signal(1, "c1", false);
    let mut batch = Accepting::default();
    let n = journal.accept(&mut batch, |n| Accepted {
        n,
        source: "agent".into(),
        mode: Mode::Sole,
        known: Cow::Owned(Vec::new()),
        usage_bytes: None,
        signal: Cow::Borrowed(&signal),
    });
    assert!(journal.write(batch).await);
    let mut batch = Accepting::default();
    let done = journal.accept(&mut batch, |n| Accepted {
        n,
        source: "agent".into(),
        mode: Mode::Sole,
        known: Cow::Owned(Vec::new()),
        usage_bytes: None,
        signal: Cow::Borrowed(&signal),
    });
    assert!(journal.write(batch).await);
    journal.done(done);
    drop(journal);
    writing.join().unwrap();
    let (journal, thread, recovered) = open(&settings, Arc::default()).unwrap();
    assert_eq!(recovered.unruled.iter().map(|it| it.n).collect::<Vec<_>>(), [n]);
    assert_eq!(*recovered.unruled[0].signal, signal);
    assert!(journal.next.load(Ordering::Relaxed) > done);
    drop((journal, thread));
}
