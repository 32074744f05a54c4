mod fixture;

use std::borrow::Cow;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use self::fixture::{BOOT, Cut, accepted, id, ruled, signal, submit, writer};
use super::recovery::SegmentFile;
use super::*;
use coroner_core::mode::Mode;
use coroner_core::signal::Signal;

#[test]
fn record_acknowledged_survives_crash_at_any_step() {
    let halves: [fn(usize) -> usize; 4] = [|_| 0, |all| all / 2, |all| all.saturating_sub(1), |all| all];
    let mut cuts = 0;
    for steps in 0..160 {
        for kept in halves {
            let mut writer = writer(Cut::new(steps, kept));
            // Small segments, so that one ends every few batches.
            writer.segment = 3000;
            let (mut sure, mut done) = (Vec::new(), Vec::new());
            for n in 1..40_u64 {
                let signal = signal(n, &format!("c{}", n % 7), n % 3 == 0);
                if submit(&mut writer, vec![accepted(n, &signal)]) {
                    sure.push(n);
                }
                if n % 2 == 0 {
                    submit(&mut writer, vec![ruled(n, &signal)]);
                }
                if n % 4 == 0 {
                    let line = codec::encode(&JournalRecord::Done { n });
                    writer.notes.lock().unwrap().push(PendingRecord::Done { n, line });
                    done.push(n);
                }
            }
            let (recovered, _) = recovery::recover(writer.disk.files(), BOOT);
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
fn whole_record_read_after_any_damage() {
    let mut random = StdRng::seed_from_u64(7);
    let lines: Vec<Vec<u8>> = (1..60_u64)
        .map(|n| {
            let signal = signal(n, &format!("c{n}"), n % 2 == 0);
            let item = if n % 3 == 0 { ruled(n, &signal) } else { accepted(n, &signal) };
            item.line().to_vec()
        })
        .collect();
    let whole = lines.concat();
    assert_eq!(codec::decode(&whole).0.len(), lines.len());
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
        let (entries, damage) = codec::decode(&bytes);
        for (at, line) in lines.iter().enumerate().filter(|(at, _)| !hit.contains(at)) {
            let entry = codec::decode(line).0.pop().unwrap();
            assert!(entries.contains(&entry), "round {round}: record {at} was whole");
        }
        let named: usize = damage.iter().map(|it| it.bytes).sum();
        // The damage may be in the line feed only: then the record is whole.
        let left_out = lines.len() - entries.len();
        assert!(entries.len() <= lines.len() && left_out <= hit.len(), "round {round}");
        let kept: usize = entries.iter().map(|entry| codec::encode(entry).len()).sum();
        // Except for the line feed that ends a damaged line.
        assert!(kept + named + damage.len() >= bytes.len(), "round {round}: what is left out is named");
        assert!(damage.iter().all(|it| it.offset + it.bytes <= bytes.len()));
    }
}

#[test]
fn new_segment_holds_the_live_set() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    writer.segment = 2000;
    let signals: Vec<Signal> = (1..200).map(|n| signal(n, &format!("c{}", n % 5), false)).collect();
    for signal in &signals {
        let n = signal.at.received_ms;
        assert!(submit(&mut writer, vec![accepted(n, signal)]));
        assert!(submit(&mut writer, vec![ruled(n, signal)]));
        if n != 77 {
            writer
                .notes
                .lock()
                .unwrap()
                .push(PendingRecord::Done { n, line: codec::encode(&JournalRecord::Done { n }) });
        }
    }
    let cursor = |seq| Cursor { source: "agent".to_owned(), stream: "s".to_owned(), seq };
    for seq in [4, 9] {
        let line = codec::encode(&JournalRecord::Cursor(cursor(seq)));
        writer.notes.lock().unwrap().push(PendingRecord::Cursor { source: "agent".to_owned(), line });
    }
    let running = RunningContainer {
        source: "agent".to_owned(),
        stream: "s".to_owned(),
        container: id("c9"),
        kills_total: Some(1),
        shim: None,
    };
    let line = codec::encode(&JournalRecord::Running(running.clone()));
    writer.notes.lock().unwrap().push(PendingRecord::Running {
        source: "agent".to_owned(),
        container: id("c9"),
        line,
    });
    writer.write(Vec::new());
    assert!(writer.number > 10, "{} files", writer.number);
    assert_eq!(writer.disk.shown.len(), 1, "those before it are removed");
    let check = |files: Vec<SegmentFile>| {
        let (recovered, live) = recovery::recover(files, BOOT);
        assert_eq!(recovered.unruled, []);
        assert_eq!(recovered.undelivered.iter().map(|it| it.ruled.n).collect::<Vec<_>>(), [77]);
        assert_eq!(recovered.cases.len(), 5);
        let totals: Vec<_> = recovered.cases.iter().map(|(_, _, case)| case.kills_total().unwrap()).collect();
        assert_eq!(totals, [195, 196, 197, 198, 199], "the last of each");
        assert_eq!(recovered.cursors["agent"], cursor(9));
        assert_eq!(recovered.running, std::slice::from_ref(&running));
        assert_eq!(recovered.published.len(), 5);
        live
    };
    let live = check(writer.disk.files());
    // A segment that begins with the live set is recovered once more.
    let again = SegmentFile { number: 1, path: PathBuf::new(), bytes: live.lines() };
    check(vec![again]);
}

#[test]
fn end_accepted_removes_running_container() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    for name in ["c1", "c2", "c3"] {
        let running = RunningContainer {
            source: "agent".to_owned(),
            stream: "s".to_owned(),
            container: id(name),
            kills_total: None,
            shim: None,
        };
        let line = codec::encode(&JournalRecord::Running(running));
        writer.notes.lock().unwrap().push(PendingRecord::Running {
            source: "agent".to_owned(),
            container: id(name),
            line,
        });
    }
    let mut exec = signal(2, "c2", true);
    exec.target.exec_id = Some("e1".to_owned());
    let taken =
        vec![accepted(1, &signal(1, "c1", true)), accepted(2, &exec), accepted(3, &signal(3, "c3", false))];
    assert!(submit(&mut writer, taken));
    let (recovered, _) = recovery::recover(writer.disk.files(), BOOT);
    let mut running: Vec<String> = recovered.running.iter().map(|it| it.container.to_string()).collect();
    running.sort();
    assert_eq!(running, ["c2", "c3"], "an exec's end, and a kill, do not end a container");
}

#[test]
fn disk_full_reported_and_later_records_written() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    assert!(submit(&mut writer, vec![accepted(1, &signal(1, "c1", false))]));
    writer.disk.full = true;
    assert!(!submit(&mut writer, vec![accepted(2, &signal(2, "c2", false))]));
    writer
        .notes
        .lock()
        .unwrap()
        .push(PendingRecord::Done { n: 1, line: codec::encode(&JournalRecord::Done { n: 1 }) });
    assert!(!submit(&mut writer, vec![accepted(3, &signal(3, "c3", false))]));
    assert!(writer.counts.failing.load(Ordering::Relaxed));
    writer.disk.full = false;
    assert!(submit(&mut writer, vec![accepted(4, &signal(4, "c4", false))]));
    assert!(!writer.counts.failing.load(Ordering::Relaxed));
    let (recovered, _) = recovery::recover(writer.disk.files(), BOOT);
    // 1 was finished while writes failed; 2 and 3 were reported as not written.
    assert_eq!(recovered.unruled.iter().map(|it| it.n).collect::<Vec<_>>(), [4]);
    assert_eq!(recovered.damage, []);
}

#[test]
fn journal_stays_below_its_size() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    writer.size = 20_000;
    let mut refused = 0;
    for n in 1..200 {
        refused += usize::from(!submit(&mut writer, vec![accepted(n, &signal(n, &format!("c{n}"), false))]));
        assert!(writer.disk.shown.values().map(Vec::len).sum::<usize>() <= 20_000);
    }
    assert!(refused > 100, "nothing is ever done with: {refused}");
}

#[test]
fn journal_of_another_boot_skipped() {
    let mut writer = writer(Cut::new(usize::MAX, |all| all));
    assert!(submit(&mut writer, vec![accepted(1, &signal(1, "c1", false))]));
    assert_eq!(recovery::recover(writer.disk.files(), BOOT).0.unruled.len(), 1);
    assert_eq!(recovery::recover(writer.disk.files(), "another").0.unruled, []);
}

#[tokio::test]
async fn journal_locked_by_one_router_and_recovered_by_next() {
    let folder = tempfile::tempdir().unwrap();
    let settings = JournalSettings { directory: folder.path().join("journal"), size: 16 << 20 };
    let (journal, thread, recovered) = open(&settings, Arc::default()).unwrap();
    assert!(recovered.ids.is_empty());
    let writing = std::thread::spawn(move || thread.run());
    let second = open(&settings, Arc::default()).unwrap_err().to_string();
    assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
    let signal = signal(1, "c1", false);
    let mut batch = Accepting::default();
    let n = journal.accept(&mut batch, |n| AcceptedSignal {
        n,
        source: "agent".into(),
        mode: Mode::Sole,
        known: Cow::Owned(Vec::new()),
        usage_bytes: None,
        signal: Cow::Borrowed(&signal),
    });
    assert!(journal.write(batch).await);
    let mut batch = Accepting::default();
    let done = journal.accept(&mut batch, |n| AcceptedSignal {
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
