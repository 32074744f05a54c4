//! The source `replay`: the signals of a recording, as they were told, to the policies of today.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::arrival::{Ack, Arrival, Origin};
use crate::audit::{Line, READ, Record, VERSION};
use crate::case::Known;
use crate::config::Mode;

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A line is no audit record.
    #[error("line {line} of the recording is no audit record: {source}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A line of another version.
    #[error(
        "line {line} of the recording is of version {version}; this router reads up to version {VERSION}"
    )]
    Version {
        /// Counted from 1.
        line: usize,
        /// What it says.
        version: u32,
    },
}

/// The signals of a recording in its order. Lines that tell anything else are passed over.
pub fn read(recording: &str) -> Result<Vec<Arrival>, ReplayError> {
    let mut arrivals = Vec::new();
    for (at, text) in recording.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line: Line =
            serde_json::from_str(text).map_err(|source| ReplayError::Line { line: at + 1, source })?;
        if !READ.contains(&line.v) {
            return Err(ReplayError::Version { line: at + 1, version: line.v });
        }
        if let Record::Ruled(ruled) = line.record {
            arrivals.push(Arrival {
                origin: Arc::new(Origin {
                    source: ruled.source,
                    mode: ruled.mode,
                    known: source_knows(ruled.mode, &ruled.case.known),
                    guest: None,
                    shim: false,
                }),
                usage_bytes: ruled.case.memory_last,
                memory_limit: ruled.case.memory_limit,
                attributes: ruled.case.attributes,
                signal: ruled.signal,
                ack: Ack::nobody(),
            });
        }
    }
    Ok(arrivals)
}

/// What the source itself could know: the rest follows from the mode and from who the container is.
fn source_knows(mode: Mode, known: &[Known]) -> Vec<Known> {
    known.iter().copied().filter(|it| *it != Known::Owner && !mode.writable().contains(it)).collect()
}

/// Hands a recording on, as fast as it is taken.
pub async fn run(recording: Vec<Arrival>, arrivals: mpsc::Sender<Arrival>) {
    for arrival in recording {
        if arrivals.send(arrival).await.is_err() {
            return;
        }
    }
}
