//! What the journal adds: signals that a router accepted, and their last step. The audit may lack
//! the last of them.

use std::collections::BTreeMap;

use coroner::node::config::Config;
use coroner_journal::JournalRecord;

use crate::render::note;
use crate::render::record::{JournalState, Journaled};

/// One line of JSON for each signal, in order.
pub(super) fn records(config: &Config) -> Vec<String> {
    let Some(settings) = &config.journal else { return Vec::new() };
    let entries = match coroner_journal::read(&settings.directory) {
        Ok((entries, _)) => entries,
        Err(error) => {
            note(format!("the journal in {} is skipped: {error}", settings.directory.display()));
            return Vec::new();
        }
    };
    let mut signals: BTreeMap<u64, Journaled> = BTreeMap::new();
    for entry in entries {
        match entry {
            JournalRecord::Accepted(accepted) => {
                let signal = accepted.signal.into_owned();
                let journaled = Journaled {
                    state: JournalState::Accepted,
                    id: signal.id.clone(),
                    container: signal.target.container_id.to_string(),
                    source: accepted.source.into_owned(),
                    signal: Some(signal),
                    events: Vec::new(),
                };
                signals.insert(accepted.n, journaled);
            }
            JournalRecord::Ruled(ruled) => {
                let signal = signals.entry(ruled.n).or_insert_with(|| Journaled {
                    state: JournalState::Ruled,
                    id: ruled.id.to_string(),
                    container: ruled.container.to_string(),
                    source: ruled.source.to_string(),
                    signal: None,
                    events: Vec::new(),
                });
                signal.state = JournalState::Ruled;
                signal.events = ruled.events.to_vec();
            }
            JournalRecord::Done { n } => {
                if let Some(signal) = signals.get_mut(&n) {
                    signal.state = JournalState::Done;
                }
            }
            JournalRecord::Segment(_)
            | JournalRecord::Cursor(_)
            | JournalRecord::Running(_)
            | JournalRecord::Gone { .. } => {}
        }
    }
    let line = |signal| serde_json::to_string(signal).expect("its keys are strings");
    signals.values().map(line).collect()
}
