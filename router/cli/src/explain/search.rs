//! Finds the records of one container among those of all: one pass that keeps no others.

use std::collections::{HashSet, VecDeque};

use coroner_core::signal::Owner;
use serde::Deserialize;

use crate::render::container_of;

/// Records kept of one container. One that is short of memory for a year reports that each second;
/// the last records show what became of it.
const RECORDS: usize = 10_000;
/// Bytes of them.
const BYTES: usize = 64 << 20;
/// Other containers of the same name that are remembered.
const OTHERS: usize = 1_000;
/// Starts of the router that are kept between two records of the container. A router that cannot
/// start tries ten times a second.
const STARTS: usize = 8;
/// Ids that are listed when several begin alike.
const LISTED: usize = 8;

/// What the record of a start has at its beginning.
const START: &str = "\"record\":\"recovered\"";

/// The container that is searched for.
#[derive(Debug)]
enum SearchKey {
    /// The container with this id, or with one that begins so.
    Id(String),
    /// The latest of this name.
    Name { namespace: String, pod: String, container: String },
}

/// The keys of a record that assign it to a container.
#[derive(Deserialize)]
struct ScannedRecord {
    record: String,
    id: Option<String>,
    container: Option<String>,
    signal: Option<ScannedSignal>,
}

#[derive(Deserialize)]
struct ScannedSignal {
    target: ScannedTarget,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ScannedTarget {
    container_id: String,
    owner: Option<Owner>,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    One {
        container: String,
        records: Vec<String>,
        left_out: usize,
        others: Vec<String>,
    },
    /// Some of the ids that begin so.
    Several(Vec<String>),
}

/// The search. It receives one line at a time.
#[derive(Debug)]
pub(super) struct Search {
    wanted: SearchKey,
    /// A record of the container contains this.
    needle: String,
    current: Option<Candidate>,
    /// Others that fit, the latest last.
    others: Vec<String>,
}

/// A container's records.
#[derive(Debug)]
struct Candidate {
    container: String,
    lines: VecDeque<String>,
    bytes: usize,
    left_out: usize,
    /// Lines of the sinks that were read before.
    before: HashSet<String>,
    /// Starts of the router since the last of its lines: kept if another line of it follows.
    starts: VecDeque<String>,
}

impl Search {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (wanted, needle) = match text.split('/').collect::<Vec<_>>()[..] {
            [id] if !id.is_empty() => (SearchKey::Id(id.to_owned()), id.to_owned()),
            [namespace, pod, container] if ![namespace, pod, container].contains(&"") => {
                let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
                let needle = format!("\"{pod}\"");
                (SearchKey::Name { namespace, pod, container }, needle)
            }
            _ => return Err(format!("`{text}` is neither a container id nor namespace/pod/container")),
        };
        Ok(Self { wanted, needle, current: None, others: Vec::new() })
    }

    /// Begins the files of another sink: it may have the same records again.
    pub(super) fn begin(&mut self) {
        if let Some(kept) = &mut self.current {
            kept.before.extend(kept.lines.iter().cloned());
            kept.starts.clear();
        }
    }

    /// Keeps a line of the container. False: it could not be read.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let ours = self.current.as_ref().is_some_and(|kept| line.contains(&kept.container));
        if !ours && !line.contains(&self.needle) {
            self.start(line);
            return true;
        }
        let Ok(record) = serde_json::from_str::<ScannedRecord>(line) else { return false };
        let container = match (record.record.as_str(), &record.signal) {
            ("ruled" | "resumed", Some(signal)) => self.fits(&signal.target),
            ("journaled" | "resumed", _) => record.container.as_deref().filter(|id| self.is_known(id)),
            // A delivery has the signal's id alone, and follows its ruling.
            ("delivered", _) => record.id.as_deref().and_then(container_of).filter(|id| self.is_known(id)),
            // A start, whatever in it fits the search.
            _ => {
                self.start(line);
                None
            }
        };
        if let Some(container) = container.map(str::to_owned) {
            self.found_one(&container);
            self.keep(&container, line);
        }
        true
    }

    /// A start of the router belongs to every container that ran then.
    fn start(&mut self, line: &str) {
        // It is near the beginning, as routers write it: the whole of every line would take long.
        let begins = line.get(..START.len() + 16).unwrap_or(line);
        if let Some(kept) = &mut self.current
            && begins.contains(START)
        {
            kept.starts.push_back(line.to_owned());
            if kept.starts.len() > STARTS {
                kept.starts.pop_front();
            }
        }
    }

    pub(super) fn found(self) -> Found {
        let Some(kept) = self.current else { return Found::Nothing };
        if let SearchKey::Id(wanted) = &self.wanted
            && *wanted != kept.container
            && !self.others.is_empty()
        {
            let mut ids: Vec<String> = [kept.container].into_iter().chain(self.others).collect();
            ids.sort_unstable();
            ids.truncate(LISTED);
            return Found::Several(ids);
        }
        Found::One {
            container: kept.container,
            records: kept.lines.into(),
            left_out: kept.left_out,
            others: if matches!(self.wanted, SearchKey::Name { .. }) { self.others } else { Vec::new() },
        }
    }

    fn fits<'a>(&self, target: &'a ScannedTarget) -> Option<&'a str> {
        let id = target.container_id.as_str();
        let fits = match &self.wanted {
            SearchKey::Id(start) => id.starts_with(start.as_str()),
            SearchKey::Name { namespace, pod, container } => target.owner.as_ref().is_some_and(|owner| {
                [&owner.namespace, &owner.pod, &owner.container].map(Option::as_deref)
                    == [namespace, pod, container].map(|it| Some(it.as_str()))
            }),
        };
        // Signals before the name was known have no owner.
        (fits || self.is_current(id)).then_some(id)
    }

    fn is_current(&self, id: &str) -> bool {
        self.current.as_ref().is_some_and(|kept| kept.container == id)
    }

    fn is_known(&self, id: &str) -> bool {
        self.is_current(id) || matches!(&self.wanted, SearchKey::Id(start) if id.starts_with(start.as_str()))
    }

    /// Continues with this container, if it is the one: the only one so far, the one with this id
    /// in full, or the latest of a name.
    fn found_one(&mut self, container: &str) {
        if self.is_current(container) || self.others.iter().any(|it| it == container) {
            return;
        }
        let is_wanted = match (&self.wanted, &self.current) {
            (SearchKey::Id(wanted), Some(_)) => container == wanted,
            (SearchKey::Name { .. }, Some(_)) | (_, None) => true,
        };
        if !is_wanted {
            self.other(container.to_owned());
            return;
        }
        let kept = Candidate {
            container: container.to_owned(),
            lines: VecDeque::new(),
            bytes: 0,
            left_out: 0,
            before: HashSet::new(),
            starts: VecDeque::new(),
        };
        if let Some(before) = self.current.replace(kept) {
            self.other(before.container);
        }
    }

    fn other(&mut self, container: String) {
        if self.others.len() < OTHERS {
            self.others.push(container);
        }
    }

    fn keep(&mut self, container: &str, line: &str) {
        let Some(kept) = self.current.as_mut().filter(|kept| kept.container == container) else { return };
        // Several sinks have the same records. Within one, a line that is there twice happened
        // twice.
        if kept.before.contains(line) {
            kept.starts.clear();
            return;
        }
        for line in std::mem::take(&mut kept.starts).into_iter().chain([line.to_owned()]) {
            kept.bytes += line.len();
            kept.lines.push_back(line);
        }
        while (kept.lines.len() > RECORDS || kept.bytes > BYTES)
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.bytes -= oldest.len();
            kept.left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests;
