//! Delivery accounting of one lane: counts each document by outcome, reports the delivery of events
//! to the audit, and writes dropped documents to the dead-letter file.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Document, Records, dead_letter};
use crate::counts::{DropReason, SinkCounts};
use coroner_core::audit::{Delivered, DeliveredOutcome, Record};

/// The delivery accounting of one lane.
#[derive(Debug)]
pub(super) struct Accounting {
    pub(super) sink: String,
    pub(super) counts: Arc<SinkCounts>,
    /// Where deliveries of events are recorded. Lanes of audit records end only once every other
    /// lane has dropped this.
    pub(super) records: Option<Records>,
    pub(super) dead_letter: Option<PathBuf>,
}

impl Accounting {
    /// Whether deliveries of events are still recorded.
    pub(super) fn records_events(&self) -> bool {
        self.records.is_some()
    }

    /// Called when no event is left.
    pub(super) fn stop_recording(&mut self) {
        self.records = None;
    }

    /// Counts a failed attempt.
    pub(super) fn failed(&self) {
        self.counts.failed.one();
    }

    /// Counts documents that the sink accepted.
    pub(super) fn delivered(&self, batch: &[Arc<Document>], attempts: u32, error: Option<&str>) {
        self.counts.delivered.more(batch.len() as u64);
        for document in batch {
            self.record(document, DeliveredOutcome::Acked, attempts, error.map(str::to_owned));
        }
    }

    /// Writes documents to the dead-letter file, if there is one, and drops them.
    pub(super) async fn dead_letter(
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
                tracing::error!(sink = self.sink, %error, "cannot write the dead-letter file");
                DropReason::Unwritten
            }
        };
        for document in &documents {
            self.dropped(document, reason, attempts, error);
        }
    }

    /// Counts a dropped document.
    pub(super) fn dropped(
        &self,
        document: &Document,
        reason: DropReason,
        attempts: u32,
        error: Option<&str>,
    ) {
        let before = self.counts.dropped.one(reason);
        if (before + 1).is_power_of_two() {
            let (reason, dropped) = (reason.name(), before + 1);
            tracing::warn!(sink = self.sink, reason, dropped, error, "documents dropped");
        }
        self.record(document, DeliveredOutcome::Dropped, attempts, Some(because(reason, error)));
    }

    fn record(&self, document: &Document, outcome: DeliveredOutcome, attempts: u32, error: Option<String>) {
        // The delivery of an audit record is not recorded: that would never end.
        if let (Some(records), Some(signal)) = (&self.records, &document.signal) {
            records.record(Record::Delivered(Delivered {
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
