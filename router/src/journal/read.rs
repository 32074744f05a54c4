//! Reads a journal: at the start, to go on with what it says, and for whoever wants to know what is in it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::entry::{Accepted, Cursor, Entry, Item, Lives, Ruled, VERSION};
use super::line::{self, Damage, encode};
use super::live::Live;
use crate::case::Case;
use crate::ruling::TaskEvent;
use crate::signal::{ContainerId, Event, Signal};

/// What the names of whole files end in.
pub(super) const SUFFIX: &str = ".journal";

/// A TaskOOM that was published and may have to be once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The signal's id.
    pub id: String,
    /// Whose.
    pub container: ContainerId,
    /// Its containerd namespace.
    pub namespace: String,
    /// When its container had ended, unix milliseconds; `None`: it lives.
    pub ended_ms: Option<u64>,
}

/// Ruled, and not delivered.
#[derive(Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// What was ruled.
    pub ruled: Ruled<'static>,
    /// Of what; `None`: its line was damaged.
    pub signal: Option<Signal>,
}

/// A file, and a part of it that was left out.
pub type Damaged = (PathBuf, Damage);

/// What a router goes on with.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Accepted and not ruled, in order.
    pub unruled: Vec<Accepted<'static>>,
    /// Ruled and not delivered, in order.
    pub undelivered: Vec<Undelivered>,
    /// What is known of each container, and its source.
    pub cases: Vec<(ContainerId, String, Case)>,
    /// TaskOOMs of containers that are known.
    pub published: Vec<Published>,
    /// Containers that lived.
    pub lives: Vec<Lives>,
    /// How far each source's stream was dealt with.
    pub cursors: HashMap<String, Cursor>,
    /// Ids of signals that were taken: they need not be taken again.
    pub ids: HashSet<String>,
    /// What was left out.
    pub damage: Vec<Damaged>,
    /// The number of the next signal.
    pub(super) next: u64,
    /// The number of the last file.
    pub(super) last: u64,
}

/// Every whole entry of a journal, in order, and what is not. A folder that is not there holds none.
pub fn read(directory: &Path) -> io::Result<(Vec<Entry<'static>>, Vec<Damaged>)> {
    let (mut entries, mut damage) = (Vec::new(), Vec::new());
    if !directory.exists() {
        return Ok((entries, damage));
    }
    for Read { path, bytes, .. } in files(directory)? {
        let (read, damaged) = line::decode(&bytes);
        entries.extend(read);
        damage.extend(damaged.into_iter().map(|it| (path.clone(), it)));
    }
    Ok((entries, damage))
}

/// Files of a journal, the earliest first.
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

/// A file of a journal, as it was read.
pub(super) struct Read {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
}

/// Every file of a journal, the earliest first.
pub(super) fn files(directory: &Path) -> io::Result<Vec<Read>> {
    let read = |(number, path): (u64, PathBuf)| Ok(Read { number, bytes: fs::read(&path)?, path });
    segments(directory)?.into_iter().map(read).collect()
}

/// What a router goes on with, and the lines that still count.
pub(super) fn recover(files: Vec<Read>, boot: &str) -> (Recovered, Live) {
    let mut live = Live::default();
    let mut recovered = Recovered { next: 1, ..Recovered::default() };
    for Read { number, path, bytes } in files {
        recovered.last = number;
        let (entries, damage) = line::decode(&bytes);
        let other = entries.iter().find_map(|entry| match entry {
            Entry::Segment(segment) => {
                (segment.version != VERSION || segment.boot != boot).then_some(segment)
            }
            _ => None,
        });
        if let Some(segment) = other {
            // No container outlives a boot; a later version's files are not for this one.
            tracing::info!(path = %path.display(), version = segment.version, "a journal of another boot or version is left out");
            continue;
        }
        for damage in damage {
            tracing::warn!(path = %path.display(), offset = damage.offset, bytes = damage.bytes, "a part of the journal is damaged, and left out");
            recovered.damage.push((path.clone(), damage));
        }
        for entry in entries {
            recovered.note(&entry);
            if let Some(item) = item(entry) {
                live.take(item);
            }
        }
    }
    recovered.fill(&live);
    (recovered, live)
}

impl Recovered {
    fn note(&mut self, entry: &Entry<'_>) {
        let (n, id) = match entry {
            Entry::Accepted(accepted) => (accepted.n, &accepted.signal.id),
            Entry::Ruled(ruled) => (ruled.n, &ruled.id.clone().into_owned()),
            _ => return,
        };
        self.next = self.next.max(n.saturating_add(1));
        self.ids.insert(id.clone());
    }

    fn fill(&mut self, live: &Live) {
        for (accepted, ruled) in live.open() {
            match (accepted.and_then(only), ruled.and_then(only)) {
                (accepted, Some(Entry::Ruled(ruled))) => {
                    let signal = match accepted {
                        Some(Entry::Accepted(accepted)) => Some(accepted.signal.into_owned()),
                        _ => None,
                    };
                    self.undelivered.push(Undelivered { ruled, signal });
                }
                (Some(Entry::Accepted(accepted)), _) => self.unruled.push(accepted),
                _ => {}
            }
        }
        let under_way: HashSet<u64> = self.undelivered.iter().map(|it| it.ruled.n).collect();
        for (last, oom) in live.rulings() {
            let Some(Entry::Ruled(last)) = only(last) else { continue };
            // What is delivered now need not be repeated beside it.
            let oom = oom
                .and_then(only)
                .filter(|oom| !matches!(oom, Entry::Ruled(oom) if under_way.contains(&oom.n)));
            if let Some(Entry::Ruled(oom)) = oom {
                self.published.push(Published {
                    id: oom.id.into_owned(),
                    container: oom.container.into_owned(),
                    namespace: oom.namespace.into_owned(),
                    ended_ms: last.case.exit.is_some().then_some(last.at_ms),
                });
            }
            self.cases.push((last.container.into_owned(), last.source.into_owned(), last.case.into_owned()));
        }
        // Their agents were told that these ends are taken, and may not tell them again.
        let ended: HashSet<&ContainerId> = self.unruled.iter().filter_map(ended).collect();
        for entry in live.lives().filter_map(only) {
            if let Entry::Lives(lives) = entry
                && !ended.contains(&lives.container)
            {
                self.lives.push(lives);
            }
        }
        let kills: HashMap<&ContainerId, u64> =
            self.cases.iter().filter_map(|(id, _, case)| Some((id, case.kills_total()?))).collect();
        for lives in &mut self.lives {
            lives.kills_total = lives.kills_total.max(kills.get(&lives.container).copied());
        }
        for entry in live.cursors().filter_map(only) {
            if let Entry::Cursor(cursor) = entry {
                self.cursors.insert(cursor.source.clone(), cursor);
            }
        }
    }
}

/// The container whose end it tells.
fn ended<'a>(accepted: &'a Accepted<'_>) -> Option<&'a ContainerId> {
    let signal = &*accepted.signal;
    let is_end = matches!(signal.event, Event::Exited(_)) && signal.target.exec_id.is_none();
    is_end.then_some(&signal.target.container_id)
}

fn only(line: &[u8]) -> Option<Entry<'static>> {
    line::decode(line).0.pop()
}

fn item(entry: Entry<'static>) -> Option<Item> {
    let line = encode(&entry);
    Some(match entry {
        Entry::Segment(_) => return None,
        Entry::Accepted(accepted) => Item::Accepted { n: accepted.n, line },
        Entry::Ruled(ruled) => Item::Ruled {
            n: ruled.n,
            over: ruled.case.exit.is_some(),
            oom: ruled.events.contains(&TaskEvent::Oom),
            source: ruled.source.into_owned(),
            container: ruled.container.into_owned(),
            line,
        },
        Entry::Done { n } => Item::Done { n, line },
        Entry::Cursor(cursor) => Item::Cursor { source: cursor.source, line },
        Entry::Lives(lives) => Item::Lives { source: lives.source, container: lives.container, line },
        Entry::Gone { container } => Item::Gone { container, line },
    })
}
