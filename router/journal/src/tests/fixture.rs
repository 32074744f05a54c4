//! Signals and records, and a disk in memory that fails at a chosen step.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::recovery::SegmentFile;
use crate::segment::Disk;
use crate::*;
use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::mode::Mode;
use coroner_core::signal::Signal;
use coroner_core::signal::{Event, Exited, Moment, OomKilled, Target};

pub(super) const BOOT: &str = "this-boot";

pub(super) fn id(name: &str) -> ContainerId {
    ContainerId::try_from(name.to_owned()).unwrap()
}

pub(super) fn signal(n: u64, container: &str, exits: bool) -> Signal {
    let kill = OomKilled {
        added: Some(1),
        total: Some(n),
        level: coroner_core::signal::Level::Container,
        cgroup: Some("/a \"b\"\n".to_owned()),
        ..OomKilled::new(coroner_core::signal::Evidence::Counter)
    };
    let exit = Exited { status: Some(137), ..Exited::unknown() };
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

pub(super) fn accepted(n: u64, signal: &Signal) -> PendingRecord {
    let entry = AcceptedSignal {
        n,
        source: "agent".into(),
        mode: Mode::Sole,
        known: Cow::Owned(vec![Known::KillCount]),
        usage_bytes: None,
        signal: Cow::Borrowed(signal),
    };
    PendingRecord::Accepted { n, line: codec::encode(&JournalRecord::Accepted(entry)) }
}

pub(super) fn ruled(n: u64, signal: &Signal) -> PendingRecord {
    let mut case = Case::new(&[Known::KillCount]);
    case.update(signal, &[coroner_core::ruling::Action::TaskOom]);
    let events = [TaskEvent::Oom];
    let entry = RulingRecord {
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
    PendingRecord::Ruled {
        n,
        source: "agent".to_owned(),
        container,
        over,
        oom: true,
        line: codec::encode(&JournalRecord::Ruled(entry)),
    }
}

/// Files in memory; operations fail once no steps are left.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) shown: BTreeMap<u64, Vec<u8>>,
    partial: Option<(u64, Vec<u8>)>,
    current: Option<u64>,
    pub(super) steps: usize,
    /// How many bytes of the last step are kept: half, none, or all although it fails.
    kept: fn(usize) -> usize,
    pub(super) full: bool,
}

impl Cut {
    pub(super) fn new(steps: usize, kept: fn(usize) -> usize) -> Self {
        Self { shown: BTreeMap::new(), partial: None, current: None, steps, kept, full: false }
    }

    fn step(&mut self) -> io::Result<()> {
        let left = self.steps.checked_sub(1).ok_or_else(|| io::Error::other("cut"))?;
        self.steps = left;
        Ok(())
    }

    pub(super) fn files(&self) -> Vec<SegmentFile> {
        let read = |(number, bytes): (&u64, &Vec<u8>)| SegmentFile {
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

    fn finish(&mut self, number: u64) -> io::Result<()> {
        self.step()?;
        let (_, bytes) = self.partial.take().expect("begun");
        self.shown.insert(number, bytes);
        self.current = Some(number);
        Ok(())
    }

    fn revert(&mut self) {
        self.partial = None;
    }

    fn remove_before(&mut self, number: u64) -> io::Result<()> {
        self.step()?;
        self.shown.retain(|it, _| *it >= number);
        Ok(())
    }
}

pub(super) fn writer(disk: Cut) -> Writer<Cut> {
    let counts = Arc::<JournalCounts>::default();
    let mut writer = Writer::new(disk, BOOT.to_owned(), 64 << 20, Arc::default(), Arc::default(), counts);
    writer.begin(live_set::LiveSet::default(), 0);
    writer
}

/// Submits a batch and returns the writer's answer.
pub(super) fn submit(writer: &mut Writer<Cut>, items: Vec<PendingRecord>) -> bool {
    let (written, mut result) = oneshot::channel();
    writer.write(vec![Batch { items, written: Some(written) }]);
    result.try_recv().unwrap_or(false)
}
