//! Recovery: reads a journal at the start, and for `coroner explain`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::codec::{self, Damage, encode};
use super::live_set::LiveSet;
use super::record::{
    AcceptedSignal, Cursor, JournalRecord, PendingRecord, RulingRecord, RunningContainer, VERSION,
};
use coroner_core::case::Case;
use coroner_core::ruling::TaskEvent;
use coroner_core::signal::{ContainerId, Event, Signal};

/// Suffix of complete segments.
pub(super) const SUFFIX: &str = ".journal";

/// A TaskOOM that was published and may have to be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedOom {
    /// The signal's id.
    pub id: String,
    /// Id of the container.
    pub container: ContainerId,
    /// Its containerd namespace.
    pub namespace: String,
    /// When its container ended, unix milliseconds; `None`: it is running.
    pub ended_ms: Option<u64>,
}

/// A ruling that was not delivered.
#[derive(Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// The ruling.
    pub ruled: RulingRecord<'static>,
    /// Its signal; `None`: its line was damaged.
    pub signal: Option<Signal>,
}

/// A segment, and a damaged part of it.
pub type Damaged = (PathBuf, Damage);

/// The state recovered from the journal.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Signals accepted and not ruled, in order.
    pub unruled: Vec<AcceptedSignal<'static>>,
    /// Rulings not delivered, in order.
    pub undelivered: Vec<Undelivered>,
    /// The case of each container, and its source.
    pub cases: Vec<(ContainerId, String, Case)>,
    /// Published TaskOOMs of known containers.
    pub published: Vec<PublishedOom>,
    /// Containers that were running.
    pub running: Vec<RunningContainer>,
    /// The cursor of each source.
    pub cursors: HashMap<String, Cursor>,
    /// Ids of accepted signals, for deduplication: an agent may send them again.
    pub ids: HashSet<String>,
    /// Damaged parts, which were skipped.
    pub damage: Vec<Damaged>,
    /// Number of the next signal.
    pub(super) next: u64,
    /// Number of the last segment.
    pub(super) last: u64,
}

/// Reads every whole record of a journal, in order, and the damage. A folder that does not exist
/// contains no records.
pub fn read(directory: &Path) -> io::Result<(Vec<JournalRecord<'static>>, Vec<Damaged>)> {
    let (mut entries, mut damage) = (Vec::new(), Vec::new());
    if !directory.exists() {
        return Ok((entries, damage));
    }
    for SegmentFile { path, bytes, .. } in files(directory)? {
        let (read, damaged) = codec::decode(&bytes);
        entries.extend(read);
        damage.extend(damaged.into_iter().map(|it| (path.clone(), it)));
    }
    Ok((entries, damage))
}

/// Segments of a journal, oldest first.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// A segment as it was read.
#[derive(Clone, Debug)]
pub struct SegmentFile {
    /// Its number, from 1.
    pub number: u64,
    /// Where it was read from.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Reads every segment of a journal, oldest first.
pub(super) fn files(directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let read = |(number, path): (u64, PathBuf)| Ok(SegmentFile { number, bytes: fs::read(&path)?, path });
    segments(directory)?.into_iter().map(read).collect()
}

/// The state that a router would recover from these segments, oldest first.
pub fn recovered(files: Vec<SegmentFile>, boot: &str) -> Recovered {
    recover(files, boot).0
}

/// Recovers the state and the live set.
pub(super) fn recover(files: Vec<SegmentFile>, boot: &str) -> (Recovered, LiveSet) {
    let mut live = LiveSet::default();
    let mut recovered = Recovered { next: 1, ..Recovered::default() };
    for SegmentFile { number, path, bytes } in files {
        recovered.last = number;
        let (entries, damage) = codec::decode(&bytes);
        let other = entries.iter().find_map(|entry| match entry {
            JournalRecord::Segment(segment) => {
                (segment.version != VERSION || segment.boot != boot).then_some(segment)
            }
            _ => None,
        });
        if let Some(segment) = other {
            // Containers do not outlive a boot, and a later version's format is unknown.
            tracing::info!(path = %path.display(), version = segment.version, "journal of another boot or version skipped");
            continue;
        }
        for damage in damage {
            tracing::warn!(path = %path.display(), offset = damage.offset, bytes = damage.bytes, "damaged part of the journal skipped");
            recovered.damage.push((path.clone(), damage));
        }
        for entry in entries {
            recovered.note(&entry);
            if let Some(item) = item(entry) {
                live.apply(item);
            }
        }
    }
    recovered.fill(&live);
    (recovered, live)
}

impl Recovered {
    fn note(&mut self, entry: &JournalRecord<'_>) {
        let (n, id) = match entry {
            JournalRecord::Accepted(accepted) => (accepted.n, &accepted.signal.id),
            JournalRecord::Ruled(ruled) => (ruled.n, &ruled.id.clone().into_owned()),
            _ => return,
        };
        self.next = self.next.max(n.saturating_add(1));
        self.ids.insert(id.clone());
    }

    fn fill(&mut self, live: &LiveSet) {
        for (accepted, ruled) in live.open() {
            match (accepted.and_then(only), ruled.and_then(only)) {
                (accepted, Some(JournalRecord::Ruled(ruled))) => {
                    let signal = match accepted {
                        Some(JournalRecord::Accepted(accepted)) => Some(accepted.signal.into_owned()),
                        _ => None,
                    };
                    self.undelivered.push(Undelivered { ruled, signal });
                }
                (Some(JournalRecord::Accepted(accepted)), _) => self.unruled.push(accepted),
                _ => {}
            }
        }
        let under_way: HashSet<u64> = self.undelivered.iter().map(|it| it.ruled.n).collect();
        for (last, oom) in live.rulings() {
            let Some(JournalRecord::Ruled(last)) = only(last) else { continue };
            // A TaskOOM in `undelivered` is delivered anyway and needs no repeat.
            let oom = oom
                .and_then(only)
                .filter(|oom| !matches!(oom, JournalRecord::Ruled(oom) if under_way.contains(&oom.n)));
            if let Some(JournalRecord::Ruled(oom)) = oom {
                self.published.push(PublishedOom {
                    id: oom.id.into_owned(),
                    container: oom.container.into_owned(),
                    namespace: oom.namespace.into_owned(),
                    ended_ms: last.case.exit.is_some().then_some(last.at_ms),
                });
            }
            self.cases.push((last.container.into_owned(), last.source.into_owned(), last.case.into_owned()));
        }
        // Their agents received an acknowledgement of these ends and may not report them again.
        let ended: HashSet<&ContainerId> = self.unruled.iter().filter_map(ended).collect();
        for entry in live.running().filter_map(only) {
            if let JournalRecord::Running(running) = entry
                && !ended.contains(&running.container)
            {
                self.running.push(running);
            }
        }
        let kills: HashMap<&ContainerId, u64> =
            self.cases.iter().filter_map(|(id, _, case)| Some((id, case.kills_total()?))).collect();
        for running in &mut self.running {
            running.kills_total = running.kills_total.max(kills.get(&running.container).copied());
        }
        for entry in live.cursors().filter_map(only) {
            if let JournalRecord::Cursor(cursor) = entry {
                self.cursors.insert(cursor.source.clone(), cursor);
            }
        }
    }
}

/// The container that this signal reports as ended; none for any other signal.
fn ended<'a>(accepted: &'a AcceptedSignal<'_>) -> Option<&'a ContainerId> {
    let signal = &*accepted.signal;
    let is_end = matches!(signal.event, Event::Exited(_)) && signal.target.exec_id.is_none();
    is_end.then_some(&signal.target.container_id)
}

fn only(line: &[u8]) -> Option<JournalRecord<'static>> {
    codec::decode(line).0.pop()
}

fn item(entry: JournalRecord<'static>) -> Option<PendingRecord> {
    let line = encode(&entry);
    Some(match entry {
        JournalRecord::Segment(_) => return None,
        JournalRecord::Accepted(accepted) => PendingRecord::Accepted { n: accepted.n, line },
        JournalRecord::Ruled(ruled) => PendingRecord::Ruled {
            n: ruled.n,
            over: ruled.case.exit.is_some(),
            oom: ruled.events.contains(&TaskEvent::Oom),
            source: ruled.source.into_owned(),
            container: ruled.container.into_owned(),
            line,
        },
        JournalRecord::Done { n } => PendingRecord::Done { n, line },
        JournalRecord::Cursor(cursor) => PendingRecord::Cursor { source: cursor.source, line },
        JournalRecord::Running(running) => {
            PendingRecord::Running { source: running.source, container: running.container, line }
        }
        JournalRecord::Gone { container } => PendingRecord::Gone { container, line },
    })
}
