//! What the journal adds: signals that a router had accepted, and how far it came with them. The audit may lack the last of them.

use std::collections::BTreeMap;

use coroner::config::Config;
use coroner::journal::{self, Entry};
use serde_json::{Value, json};

/// One record a signal, in order: `journaled`, which is `explain`'s own.
pub(super) fn records(config: &Config) -> Vec<String> {
    let Some(settings) = &config.journal else { return Vec::new() };
    let entries = match journal::read(&settings.directory) {
        Ok((entries, _)) => entries,
        Err(error) => {
            eprintln!("coroner: the journal in {} is not read: {error}", settings.directory.display());
            return Vec::new();
        }
    };
    let mut signals: BTreeMap<u64, Value> = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Accepted(accepted) => {
                signals.insert(
                    accepted.n,
                    json!({
                        "record": "journaled",
                        "state": "accepted",
                        "id": accepted.signal.id,
                        "container": accepted.signal.target.container_id,
                        "source": accepted.source,
                        "signal": accepted.signal,
                    }),
                );
            }
            Entry::Ruled(ruled) => {
                let signal = signals.entry(ruled.n).or_insert_with(|| {
                    json!({ "record": "journaled", "id": ruled.id, "container": ruled.container, "source": ruled.source, "signal": null })
                });
                signal["state"] = "ruled".into();
                signal["events"] = json!(ruled.events);
            }
            Entry::Done { n } => {
                if let Some(signal) = signals.get_mut(&n) {
                    signal["state"] = "done".into();
                }
            }
            Entry::Segment(_) | Entry::Cursor(_) | Entry::Lives(_) | Entry::Gone { .. } => {}
        }
    }
    signals.into_values().map(|signal| signal.to_string()).collect()
}
