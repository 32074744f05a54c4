//! The fan-out: sends documents to the lanes of the sinks that their routes lead to. Never waits.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Document;
use super::accounting::Accounting;
use crate::counts::DropReason;
use crate::route::{AUDIT, Route};
use crate::tap::Tap;
use coroner_core::audit::Record;
use coroner_core::count::Count;
use coroner_core::ruling::Action;
use coroner_core::signal::Signal;

/// Fans out audit records. Never waits.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub(super) inputs: Arc<Vec<LaneInput>>,
    pub(super) tap: Tap,
}

/// Fans out audit records and events. Never waits.
#[derive(Debug, Default)]
pub struct Fanout {
    pub(super) records: Records,
    pub(super) events: Vec<LaneInput>,
    pub(super) unrouted: Arc<Count>,
}

/// The input of one lane.
#[derive(Debug)]
pub(super) struct LaneInput {
    pub(super) routes: Vec<Route>,
    pub(super) inbox: mpsc::Sender<Arc<Document>>,
    pub(super) accounting: Accounting,
}

impl LaneInput {
    fn takes(&self, topic: &str, kind: Option<&str>, namespace: Option<&str>) -> bool {
        self.routes.iter().any(|route| route.is_for(topic) && route.takes(kind, namespace))
    }

    fn send(&self, document: &Arc<Document>) {
        let reason = match self.inbox.try_send(Arc::clone(document)) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => DropReason::Full,
            Err(TrySendError::Closed(_)) => DropReason::Stopped,
        };
        self.accounting.dropped(document, reason, 0, None);
    }
}

fn namespace(signal: &Signal) -> Option<&str> {
    signal.target.owner.as_ref().and_then(|owner| owner.namespace.as_deref())
}

impl Records {
    /// The tap on the current records.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// Sends a record to every sink that takes it. A lane that cannot keep up drops it and counts
    /// the drop.
    pub fn record(&self, record: Record) {
        // Records without a signal have neither a kind nor a namespace.
        let signal = match &record {
            Record::Ruled(ruled) => Some(&ruled.signal),
            Record::Delivered(_) | Record::Chain(_) | Record::Recovered(_) | Record::Resumed(_) => None,
        };
        let (kind, namespace) = (signal.map(|it| it.event.kind()), signal.and_then(namespace));
        let takes = |input: &&LaneInput| input.takes(AUDIT, kind, namespace);
        let lanes: Vec<&LaneInput> = self.inputs.iter().filter(takes).collect();
        let about = self.tap.wants(&record);
        if lanes.is_empty() && about.is_none() {
            return;
        }
        let document = Arc::new(Document::record(record));
        if let Some(about) = about {
            self.tap.keep(about, &document.json);
        }
        for input in lanes {
            input.send(&document);
        }
    }
}

/// The lanes of one action of a signal.
#[derive(Debug)]
pub struct PlannedDelivery {
    document: Arc<Document>,
    /// Indexes into [`Fanout::events`].
    lanes: Vec<usize>,
}

impl Fanout {
    /// Sends an audit record.
    pub fn record(&self, record: Record) {
        self.records.record(record);
    }

    /// Plans the delivery of a signal's action number `at`, besides containerd; the error is the
    /// reason why no sink takes it. `status` is the published exit status.
    pub fn plan(
        &self,
        signal: &Signal,
        at: usize,
        action: &Action,
        status: Option<u32>,
    ) -> Result<PlannedDelivery, &'static str> {
        let topic = action.topic();
        if matches!(action, Action::Report(_)) && (topic == AUDIT || topic.starts_with('/')) {
            self.unrouted.one();
            return Err("a report's topic is neither `audit` nor one of containerd's");
        }
        let for_topic = |input: &&LaneInput| input.routes.iter().any(|route| route.is_for(topic));
        if !self.events.iter().any(|input| for_topic(&input)) {
            if matches!(action, Action::Report(_)) {
                self.unrouted.one();
            }
            return Err("no route takes this topic");
        }
        let (kind, namespace) = (Some(signal.event.kind()), namespace(signal));
        let lanes: Vec<usize> = (0..self.events.len())
            .filter(|place| self.events.get(*place).is_some_and(|input| input.takes(topic, kind, namespace)))
            .collect();
        if lanes.is_empty() {
            return Err("no route takes this topic for this kind of signal and namespace");
        }
        let document = Arc::new(Document::event(signal, at, action, status));
        Ok(PlannedDelivery { document, lanes })
    }

    /// The sinks of a planned delivery.
    pub fn sinks<'a>(&'a self, planned: &'a PlannedDelivery) -> impl Iterator<Item = &'a str> {
        planned
            .lanes
            .iter()
            .filter_map(|place| self.events.get(*place))
            .map(|input| input.accounting.sink.as_str())
    }

    /// Sends the document.
    pub fn send(&self, planned: &PlannedDelivery) {
        for input in planned.lanes.iter().filter_map(|place| self.events.get(*place)) {
            input.send(&planned.document);
        }
    }
}
