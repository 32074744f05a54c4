//! Records as they are read: audit records, and what the journal adds to them.

use coroner_core::audit::{ChainRecord, Delivered, READ, Recovery, Resumed, Ruled};
use coroner_core::ruling::TaskEvent;
use coroner_core::signal::Signal;
use serde::{Deserialize, Serialize};

/// One line, by its key `record`. Keys that this version does not know are skipped.
#[derive(Debug, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(crate) enum RecordLine {
    Ruled(Box<Ruled>),
    Delivered(Delivered),
    Chain(ChainRecord),
    Recovered(Recovery),
    Resumed(Box<Resumed>),
    Journaled(Box<Journaled>),
    /// A kind that a newer router added.
    #[serde(other)]
    Unknown,
}

/// A signal of the journal. It is not an audit record: `coroner explain` makes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename = "journaled")]
pub(crate) struct Journaled {
    pub(crate) state: JournalState,
    pub(crate) id: String,
    pub(crate) container: String,
    pub(crate) source: String,
    /// `None`: its line of the journal was damaged.
    pub(crate) signal: Option<Signal>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<TaskEvent>,
}

/// The last step of a signal that is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum JournalState {
    Accepted,
    Ruled,
    Done,
}

/// The version that a line is stamped with.
#[derive(Deserialize)]
struct Stamp {
    v: u32,
}

/// Reads a line, or returns why this version cannot.
pub(crate) fn read(line: &str) -> Result<RecordLine, String> {
    serde_json::from_str(line).map_err(|error| {
        let version = serde_json::from_str::<Stamp>(line).map(|it| it.v);
        match version.ok().filter(|version| !READ.contains(version)) {
            Some(version) => format!(
                "a record of version {version} cannot be read, only {} to {}: use the `coroner` of the \
                 router that wrote it, or --json ({error})",
                READ.start(),
                READ.end()
            ),
            None => format!("a damaged record cannot be read; --json prints it ({error})"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static RECORDING: &str = include_str!("../demo/recording.jsonl");

    #[test]
    fn newer_record_is_read_or_refused_by_its_version() {
        let line = RECORDING.lines().next().unwrap();
        let added = line.replacen("{\"v\":1,", "{\"v\":9,\"of-tomorrow\":{},", 1);
        assert!(matches!(read(&added), Ok(RecordLine::Ruled(_))), "added keys are skipped");
        assert!(matches!(read("{\"v\":9,\"record\":\"of-tomorrow\",\"x\":1}"), Ok(RecordLine::Unknown)));
        let changed = added.replacen("\"mode\":\"sole\"", "\"mode\":\"of-tomorrow\"", 1);
        let message = read(&changed).unwrap_err();
        assert!(message.starts_with("a record of version 9 cannot be read, only 1 to 5: use"), "{message}");
        let message = read(&changed.replacen("\"v\":9", "\"v\":5", 1)).unwrap_err();
        assert!(message.starts_with("a damaged record cannot be read"), "{message}");
    }
}
