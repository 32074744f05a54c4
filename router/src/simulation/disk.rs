//! The simulated disk of the journal: writes fail, are torn, find the disk full, or are the last
//! ones of their process.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::fault::Sabotage;
use super::random::Random;
use coroner_journal::{Disk, JournalRecord, SegmentFile};

/// Checksum and space before the JSON of a line.
const HEAD: usize = 9;

/// How the disk behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    #[default]
    Well,
    /// Each operation fails; what it wrote may be torn.
    Fails,
    /// Nothing more fits; removing is possible.
    Full,
}

/// The content of a disk, as a router that starts now would find it.
pub(super) type Image = Vec<SegmentFile>;

#[derive(Debug)]
struct DiskState {
    segments: BTreeMap<u64, Vec<u8>>,
    partial: Option<Vec<u8>>,
    current: Option<u64>,
    health: Health,
    random: Random,
    fault: Option<Sabotage>,
    /// Operations so far.
    operations: u64,
    /// The process dies within this operation.
    dies_at: Option<u64>,
    dead: bool,
    /// Ids of signals that had a whole record on the disk, at any time.
    written: HashSet<String>,
    /// What was on the disk after each operation, and within it, since the last check.
    images: Vec<Image>,
}

/// The disk. Cheap to clone; it survives the router.
#[derive(Clone, Debug)]
pub(super) struct SimulatedDisk(Arc<Mutex<DiskState>>);

impl SimulatedDisk {
    pub(super) fn new(random: Random, fault: Option<Sabotage>) -> Self {
        Self(Arc::new(Mutex::new(DiskState {
            segments: BTreeMap::new(),
            partial: None,
            current: None,
            health: Health::Well,
            random,
            fault,
            operations: 0,
            dies_at: None,
            dead: false,
            written: HashSet::new(),
            images: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap()
    }

    pub(super) fn set_health(&self, health: Health) {
        self.state().health = health;
    }

    pub(super) fn health(&self) -> Health {
        self.state().health
    }

    /// The process dies within the operation with this number, from 1.
    pub(super) fn die_at(&self, operation: Option<u64>) {
        self.state().dies_at = operation;
    }

    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The next process opens the disk.
    pub(super) fn reopen(&self) -> Image {
        let mut state = self.state();
        (state.partial, state.current, state.dead) = (None, None, false);
        let image = state.image();
        // A write that failed may have left whole records.
        image.iter().for_each(|file| state.note_written(&file.bytes));
        image
    }

    /// What is on the disk.
    pub(super) fn image(&self) -> Image {
        self.state().image()
    }

    pub(super) fn was_written(&self, id: &str) -> bool {
        self.state().written.contains(id)
    }

    pub(super) fn take_images(&self) -> Vec<Image> {
        std::mem::take(&mut self.state().images)
    }
}

impl DiskState {
    fn image(&self) -> Image {
        let file = |(number, bytes): (&u64, &Vec<u8>)| SegmentFile {
            number: *number,
            path: PathBuf::new(),
            bytes: bytes.clone(),
        };
        self.segments.iter().map(file).collect()
    }

    /// Counts an operation. After an error it has no effect.
    fn operation(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the process is dead"));
        }
        self.operations += 1;
        if self.dies_at == Some(self.operations) {
            self.dead = true;
        }
        match self.health {
            _ if self.dead => Err(io::Error::other("the process died")),
            Health::Well | Health::Full => Ok(()),
            Health::Fails => Err(io::Error::other("input/output error")),
        }
    }

    fn file(&mut self) -> Option<&mut Vec<u8>> {
        match &mut self.partial {
            Some(partial) => Some(partial),
            None => self.segments.get_mut(&self.current?),
        }
    }

    /// Appends the first bytes only.
    fn append_torn(&mut self, bytes: &[u8]) {
        let kept = self.random.below(bytes.len() + 1);
        if let Some(file) = self.file() {
            file.extend_from_slice(&bytes[..kept]);
        }
        let image = self.image();
        self.images.push(image);
    }

    /// Remembers the signals that have a whole record in what was just written.
    fn note_written(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let json = line.get(HEAD..).unwrap_or_default();
            if let Ok(JournalRecord::Accepted(accepted)) = serde_json::from_slice(json) {
                self.written.insert(accepted.signal.id.clone());
            }
        }
    }
}

impl Disk for SimulatedDisk {
    fn begin(&mut self, _number: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        if state.health == Health::Full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.partial = Some(Vec::new());
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let was_dead = state.dead;
        let possible = state.operation().and_then(|()| match state.health {
            Health::Full => Err(io::ErrorKind::StorageFull.into()),
            Health::Well | Health::Fails => Ok(()),
        });
        if let Err(error) = possible {
            if !was_dead {
                state.append_torn(bytes);
            }
            return Err(error);
        }
        if state.file().is_none() {
            return Err(io::Error::other("no journal segment could be created yet"));
        }
        let is_false = state.fault == Some(Sabotage::TornWriteAccepted) && state.random.chance(10);
        if is_false {
            state.append_torn(bytes);
            return Ok(());
        }
        // As a crash within the write would leave it.
        let before = state.file().map_or(0, |file| file.len());
        state.append_torn(bytes);
        if let Some(file) = state.file() {
            file.truncate(before);
            file.extend_from_slice(bytes);
        }
        state.note_written(bytes);
        let image = state.image();
        state.images.push(image);
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        if let Some(file) = state.file() {
            file.truncate(usize::try_from(length).unwrap());
        }
        let image = state.image();
        state.images.push(image);
        Ok(())
    }

    fn finish(&mut self, number: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let mut bytes = state.partial.take().expect("a segment is begun before it is finished");
        if state.fault == Some(Sabotage::SegmentForgetsDelivery) {
            bytes = without_one_in_flight(&bytes);
        }
        state.segments.insert(number, bytes);
        state.current = Some(number);
        let image = state.image();
        state.images.push(image);
        Ok(())
    }

    fn revert(&mut self) {
        self.state().partial = None;
    }

    fn remove_before(&mut self, number: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.segments.retain(|it, _| *it >= number);
        let image = state.image();
        state.images.push(image);
        Ok(())
    }
}

/// The segment without the lines of one signal that is not done.
fn without_one_in_flight(bytes: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let read = |line: &&[u8]| serde_json::from_slice(line.get(HEAD..).unwrap_or_default()).ok();
    let records: Vec<Option<JournalRecord<'static>>> = lines.iter().map(read).collect();
    let number = |record: &Option<JournalRecord<'static>>| match record {
        Some(JournalRecord::Accepted(accepted)) => Some(accepted.n),
        Some(JournalRecord::Ruled(ruled)) => Some(ruled.n),
        _ => None,
    };
    let is_done =
        |n: u64| records.iter().any(|it| matches!(it, Some(JournalRecord::Done { n: done }) if *done == n));
    let open = records.iter().filter_map(number).find(|n| !is_done(*n));
    let kept = lines.iter().zip(&records).filter(|(_, record)| open.is_none() || number(record) != open);
    kept.flat_map(|(line, _)| line.to_vec()).collect()
}
