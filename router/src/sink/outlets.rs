//! Hands documents to the sinks their routes lead to, and never waits.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Document;
use super::books::Books;
use crate::audit::Record;
use crate::config::{AUDIT, Route};
use crate::counts::{Count, DropReason};
use crate::ruling::Action;
use crate::signal::Signal;
use crate::tap::Tap;

/// Hands audit records to every sink that takes them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub(super) outlets: Arc<Vec<Outlet>>,
    pub(super) tap: Tap,
}

/// Hands audit records and events to every sink that takes them. Never waits.
#[derive(Debug, Default)]
pub struct Outlets {
    pub(super) records: Records,
    pub(super) events: Vec<Outlet>,
    pub(super) unrouted: Arc<Count>,
}

/// The way into one lane.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) routes: Vec<Route>,
    pub(super) inbox: mpsc::Sender<Arc<Document>>,
    pub(super) books: Books,
}

impl Outlet {
    fn takes(&self, topic: &str, kind: Option<&str>, namespace: Option<&str>) -> bool {
        self.routes.iter().any(|route| route.is_for(topic) && route.takes(kind, namespace))
    }

    fn hand(&self, document: &Arc<Document>) {
        let reason = match self.inbox.try_send(Arc::clone(document)) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => DropReason::Full,
            Err(TrySendError::Closed(_)) => DropReason::Stopped,
        };
        self.books.lost(document, reason, 0, None);
    }
}

fn namespace(signal: &Signal) -> Option<&str> {
    signal.target.owner.as_ref().and_then(|owner| owner.namespace.as_deref())
}

impl Records {
    /// Where the records of now are read along.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// Tells every sink that takes it; one whose lane cannot keep up drops it, and counts it.
    pub fn tell(&self, record: Record) {
        // What tells of no signal has neither a kind nor a namespace.
        let signal = match &record {
            Record::Ruled(ruled) => Some(&ruled.signal),
            Record::Delivered(_) | Record::Chain(_) | Record::Recovered(_) | Record::Resumed(_) => None,
        };
        let (kind, namespace) = (signal.map(|it| it.event.kind()), signal.and_then(namespace));
        let takes = |outlet: &&Outlet| outlet.takes(AUDIT, kind, namespace);
        let takers: Vec<&Outlet> = self.outlets.iter().filter(takes).collect();
        let tapped = self.tap.wants(&record);
        if takers.is_empty() && tapped.is_none() {
            return;
        }
        let document = Arc::new(Document::record(record));
        if let Some(about) = tapped {
            self.tap.keep(about, &document.json);
        }
        for outlet in takers {
            outlet.hand(&document);
        }
    }
}

/// Where one action of a signal goes.
#[derive(Debug)]
pub struct Planning {
    document: Arc<Document>,
    /// Places in [`Outlets::events`].
    takers: Vec<usize>,
}

impl Outlets {
    /// Tells an audit record.
    pub fn tell(&self, record: Record) {
        self.records.tell(record);
    }

    /// Where a signal's action number `at` goes beside containerd, or why nowhere. `status`: the one that is published.
    pub fn plan(
        &self,
        signal: &Signal,
        at: usize,
        action: &Action,
        status: Option<u32>,
    ) -> Result<Planning, &'static str> {
        let topic = action.topic();
        if matches!(action, Action::Report(_)) && (topic == AUDIT || topic.starts_with('/')) {
            self.unrouted.one();
            return Err("a report's topic is neither `audit` nor one of containerd's");
        }
        let for_topic = |outlet: &&Outlet| outlet.routes.iter().any(|route| route.is_for(topic));
        if !self.events.iter().any(|outlet| for_topic(&outlet)) {
            if matches!(action, Action::Report(_)) {
                self.unrouted.one();
            }
            return Err("no route takes this topic");
        }
        let (kind, namespace) = (Some(signal.event.kind()), namespace(signal));
        let takers: Vec<usize> = (0..self.events.len())
            .filter(|place| {
                self.events.get(*place).is_some_and(|outlet| outlet.takes(topic, kind, namespace))
            })
            .collect();
        if takers.is_empty() {
            return Err("no route takes this topic for this kind of signal and namespace");
        }
        let document = Arc::new(Document::event(signal, at, action, status));
        Ok(Planning { document, takers })
    }

    /// The sinks it goes to.
    pub fn sinks<'a>(&'a self, planned: &'a Planning) -> impl Iterator<Item = &'a str> {
        planned
            .takers
            .iter()
            .filter_map(|place| self.events.get(*place))
            .map(|outlet| outlet.books.sink.as_str())
    }

    /// Hands it over.
    pub fn send(&self, planned: &Planning) {
        for outlet in planned.takers.iter().filter_map(|place| self.events.get(*place)) {
            outlet.hand(&planned.document);
        }
    }
}
