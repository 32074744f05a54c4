//! The records of one container, parsed, and their verdict.

use coroner_core::audit::Ruled;
use coroner_core::signal::{Event, Level, Signal, Target};
use coroner_core::verdict::{DeathRecords, Verdict};

use crate::render::record::{RecordLine, read};

/// What is known of one container.
#[derive(Debug)]
pub(super) struct ReadRecords {
    /// The container's id.
    pub(super) container: String,
    /// Its records, in the order in which they were written.
    pub(super) entries: Vec<RecordLine>,
    /// Why some records cannot be read.
    pub(super) unread: Vec<String>,
    /// Earlier records that were not kept.
    pub(super) left_out: usize,
    /// Other containers of the same name, the latest last.
    pub(super) others: Vec<String>,
    pub(super) verdict: Verdict,
}

impl ReadRecords {
    pub(super) fn of(container: &str, records: &[String], left_out: usize, others: Vec<String>) -> Self {
        let (mut entries, mut unread) = (Vec::new(), Vec::new());
        for record in records {
            match read(record) {
                Ok(entry) => entries.push(entry),
                Err(reason) => unread.push(reason),
            }
        }
        let verdict = verdict(&entries);
        Self { container: container.to_owned(), entries, unread, left_out, others, verdict }
    }

    /// The latest target with an owner, or the latest.
    pub(super) fn target(&self) -> Option<&Target> {
        let targets = || self.entries.iter().rev().filter_map(signal_of).map(|it| &it.target);
        targets().find(|it| it.owner.is_some()).or_else(|| targets().next())
    }

    /// The latest ruling.
    pub(super) fn last_ruled(&self) -> Option<&Ruled> {
        self.entries.iter().rev().find_map(|entry| match entry {
            RecordLine::Ruled(it) => Some(&**it),
            _ => None,
        })
    }

    /// The memory limit of the container's own cgroup in bytes, as it was read last.
    pub(super) fn own_limit(&self) -> Option<u64> {
        self.entries.iter().rev().find_map(|entry| {
            let of_kill = match &signal_of(entry)?.event {
                Event::OomKill(kill) if kill.level == Level::Container => kill.limit_bytes,
                _ => None,
            };
            of_kill.or(match entry {
                RecordLine::Ruled(ruled) => ruled.case.memory_limit,
                _ => None,
            })
        })
    }
}

/// The signal of a record that describes the container.
pub(super) fn signal_of(entry: &RecordLine) -> Option<&Signal> {
    match entry {
        RecordLine::Ruled(ruled) => Some(&ruled.signal),
        RecordLine::Resumed(resumed) => resumed.signal.as_ref(),
        _ => None,
    }
}

/// What these records show of the container's end.
pub(super) fn verdict(entries: &[RecordLine]) -> Verdict {
    let mut records = DeathRecords::default();
    for entry in entries {
        match entry {
            RecordLine::Ruled(it) => records.ruled(it),
            RecordLine::Resumed(it) => records.resumed(it),
            RecordLine::Delivered(it) => records.delivered(it),
            RecordLine::Chain(_) | RecordLine::Recovered(_) => {}
            RecordLine::Journaled(_) | RecordLine::Unknown => {}
        }
    }
    records.verdict()
}
