//! The source `replay`: feeds the signals of a recording to the current policies.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::envelope::{Ack, Envelope, Origin};
use coroner_core::audit::{Line, READ, Record, VERSION};
use coroner_core::mode::Known;
use coroner_core::mode::Mode;

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A line is not an audit record.
    #[error("line {line} of the recording is not an audit record: {source}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A line of another version.
    #[error(
        "line {line} of the recording is of version {version}; this router reads up to version {VERSION}"
    )]
    Version {
        /// Line number, from 1.
        line: usize,
        /// The version in the line.
        version: u32,
    },
}

/// The signals of a recording in its order. Records of other kinds are skipped.
pub fn read(recording: &str) -> Result<Vec<Envelope>, ReplayError> {
    let mut envelopes = Vec::new();
    for (at, text) in recording.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line: Line =
            serde_json::from_str(text).map_err(|source| ReplayError::Line { line: at + 1, source })?;
        if !READ.contains(&line.v) {
            return Err(ReplayError::Version { line: at + 1, version: line.v });
        }
        if let Record::Ruled(ruled) = line.record {
            envelopes.push(Envelope {
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
                ack: Ack::none(),
            });
        }
    }
    Ok(envelopes)
}

/// What the source itself could know: the rest follows from the mode and from the container's
/// owner.
fn source_knows(mode: Mode, known: &[Known]) -> Vec<Known> {
    known.iter().copied().filter(|it| *it != Known::Owner && !mode.writable().contains(it)).collect()
}

/// Sends a recording as fast as it is processed.
pub async fn run(recording: Vec<Envelope>, envelopes: mpsc::Sender<Envelope>) {
    for envelope in recording {
        if envelopes.send(envelope).await.is_err() {
            return;
        }
    }
}
