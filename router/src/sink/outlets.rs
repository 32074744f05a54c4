//! Hands documents to the sinks their routes lead to, and never waits.

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use super::books::Books;
use super::lane::Lane;
use super::waiting::Inbox;
use super::{Document, open};
use crate::audit::Record;
use crate::config::{AUDIT, Config, Route, Sink};
use crate::counts::{Count, Counts, DropReason};
use crate::ruling::Action;
use crate::signal::Signal;
use crate::tap::Tap;

/// Documents on their way into one lane, whose task only moves them into its queue: they wait for a processor, not for the sink.
const INBOX: usize = 4096;

/// Hands audit records to every sink that takes them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct Records {
    outlets: Arc<Vec<Outlet>>,
    tap: Tap,
}

/// Hands audit records and events to every sink that takes them. Never waits.
#[derive(Debug, Default)]
pub struct Outlets {
    records: Records,
    events: Vec<Outlet>,
    unrouted: Arc<Count>,
}

/// The way into one lane.
#[derive(Debug)]
struct Outlet {
    routes: Vec<Route>,
    inbox: mpsc::Sender<Arc<Document>>,
    books: Books,
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
            Record::Delivered(_) | Record::Chain(_) | Record::Recovered(_) => None,
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

/// The lanes of a configuration, and the way into them.
#[derive(Debug)]
pub struct Lanes {
    /// Each to be run by a task of its own.
    pub lanes: Vec<Lane>,
    /// For what tells audit records alone.
    pub records: Records,
    /// For delivery.
    pub outlets: Outlets,
}

impl Lanes {
    /// A lane for each sink but the one of containerd. `give_up` turns true when the router's time to drain is over.
    pub fn new(config: &Config, counts: &Counts, give_up: &watch::Receiver<bool>) -> Self {
        let mut of_records = Vec::new();
        let mut of_events = Vec::new();
        let mut ends = Vec::new();
        for sink in &config.sinks {
            let Some(place) = open(&sink.kind, &config.node) else { continue };
            let named = |route: &&Route| route.sinks.contains(&sink.name);
            let routes: Vec<Route> = config.routes.iter().filter(named).cloned().collect();
            let mut inbox = Inbox::default();
            if routes.iter().any(|route| route.is_for(AUDIT)) {
                let (way, end) = mpsc::channel(INBOX);
                of_records.push((sink, routes.clone(), way));
                inbox.records = Some(end);
            }
            if routes.iter().any(Route::is_for_events) {
                let (way, end) = mpsc::channel(INBOX);
                of_events.push((sink, routes, way));
                inbox.events = Some(end);
            }
            ends.push((sink, place, inbox));
        }
        let books = |sink: &Sink, records: Option<Records>| Books {
            sink: sink.name.clone(),
            counts: counts.sink(&sink.name),
            records,
            dead_letter: sink.queue.dead_letter.clone(),
        };
        let outlets = of_records.into_iter().map(|(sink, routes, inbox)| {
            // Of a record's own fate nothing is told.
            Outlet { routes, inbox, books: books(sink, None) }
        });
        let records = Records { outlets: Arc::new(outlets.collect()), tap: Tap::default() };
        let outlets = of_events.into_iter().map(|(sink, routes, inbox)| {
            let books = books(sink, Some(records.clone()));
            Outlet { routes, inbox, books }
        });
        let events = outlets.collect();
        let lane = |(sink, place, inbox): (&Sink, _, Inbox)| {
            let told = inbox.events.is_some().then(|| records.clone());
            Lane::new(&sink.queue, place, inbox, books(sink, told), give_up.clone())
        };
        let lanes = ends.into_iter().map(lane).collect();
        let unrouted = Arc::clone(&counts.reports_unrouted);
        Self { lanes, outlets: Outlets { records: records.clone(), events, unrouted }, records }
    }
}

#[cfg(test)]
#[path = "outlets_tests.rs"]
mod tests;
