//! What became of a lane's documents: counted by reason, told to the audit, written to the dead-letter file.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Document, Records, dead_letter};
use crate::audit::{Delivered, DeliveredOutcome, Record};
use crate::counts::{DropReason, SinkCounts};

/// The books of one lane.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) sink: String,
    pub(super) counts: Arc<SinkCounts>,
    /// Where the fate of events is told. Lanes of records end only when nobody holds this any more.
    pub(super) records: Option<Records>,
    pub(super) dead_letter: Option<PathBuf>,
}

impl Books {
    /// Whether it can still tell what becomes of events.
    pub(super) fn tells(&self) -> bool {
        self.records.is_some()
    }

    /// No event is left.
    pub(super) fn tell_no_more(&mut self) {
        self.records = None;
    }

    /// A try failed.
    pub(super) fn failed(&self) {
        self.counts.failed.one();
    }

    /// The sink has these.
    pub(super) fn took(&self, batch: &[Arc<Document>], attempts: u32, error: Option<&str>) {
        self.counts.delivered.more(batch.len() as u64);
        for document in batch {
            self.tell(document, DeliveredOutcome::Acked, attempts, error.map(str::to_owned));
        }
    }

    /// Writes documents to the dead-letter file, if there is one, and lets them go.
    pub(super) async fn bury(
        &self,
        documents: Vec<Arc<Document>>,
        reason: DropReason,
        attempts: u32,
        error: Option<&str>,
    ) {
        if documents.is_empty() {
            return;
        }
        let written = match &self.dead_letter {
            Some(path) => dead_letter::append(path, &self.sink, &documents, reason, error).await,
            None => Ok(()),
        };
        let reason = match written {
            Ok(()) => reason,
            Err(error) => {
                tracing::error!(sink = self.sink, %error, "the dead-letter file cannot be written");
                DropReason::Unwritten
            }
        };
        for document in &documents {
            self.lost(document, reason, attempts, error);
        }
    }

    /// A document gave way.
    pub(super) fn lost(&self, document: &Document, reason: DropReason, attempts: u32, error: Option<&str>) {
        let before = self.counts.dropped.one(reason);
        if (before + 1).is_power_of_two() {
            let (reason, dropped) = (reason.name(), before + 1);
            tracing::warn!(sink = self.sink, reason, dropped, error, "documents dropped");
        }
        self.tell(document, DeliveredOutcome::Dropped, attempts, Some(because(reason, error)));
    }

    fn tell(&self, document: &Document, outcome: DeliveredOutcome, attempts: u32, error: Option<String>) {
        // Of an audit record nothing is told: telling would never end.
        if let (Some(records), Some(signal)) = (&self.records, &document.signal) {
            records.tell(Record::Delivered(Delivered {
                id: signal.clone(),
                sink: self.sink.clone(),
                topic: document.topic.clone(),
                outcome,
                attempts,
                waited_ms: u64::try_from(document.made.elapsed().as_millis()).unwrap_or(u64::MAX),
                error,
            }));
        }
    }
}

fn because(reason: DropReason, error: Option<&str>) -> String {
    let because = match reason {
        DropReason::Full => "the queue is full",
        DropReason::Deadline => "not taken by its deadline",
        DropReason::Refused => "refused",
        DropReason::Unwritten => "given up, and the dead-letter file cannot be written",
        DropReason::Stopped => "the router stopped",
    };
    error.map_or_else(|| because.to_owned(), |error| format!("{because}: {error}"))
}
