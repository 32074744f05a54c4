//! Makes a configuration's lanes, and the ways into them.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::books::Books;
use super::lane::Lane;
use super::open;
use super::outlets::{Outlet, Outlets, Records};
use super::waiting::Inbox;
use crate::config::{AUDIT, Config, Route, Sink};
use crate::counts::Counts;
use crate::tap::Tap;

/// Documents on their way into one lane, whose task only moves them into its queue: they wait for a processor, not for the sink.
const INBOX: usize = 4096;

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
#[path = "lanes_tests.rs"]
mod tests;
