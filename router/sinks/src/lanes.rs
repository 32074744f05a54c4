//! Builds the lanes of a configuration and the fan-out to them.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::accounting::Accounting;
use super::fanout::{Fanout, LaneInput, Records};
use super::lane::Lane;
use super::open;
use super::queue::Inbox;
use crate::counts::SinkCounts;
use crate::route::{AUDIT, Route};
use crate::settings::SinkSettings;
use crate::tap::Tap;
use coroner_core::count::Count;

/// Capacity of a lane's inbox. The lane's task only moves documents into its queue: they wait for a
/// processor, not for the sink.
const INBOX: usize = 4096;

/// The lanes of a configuration, and the fan-out to them.
#[derive(Debug)]
pub struct Lanes {
    /// Lanes; each needs a task.
    pub lanes: Vec<Lane>,
    /// For audit records only.
    pub records: Records,
    /// For delivery.
    pub fanout: Fanout,
}

impl Lanes {
    /// A lane for each sink except containerd's. `give_up` turns true when the drain timeout of the
    /// shutdown has passed.
    pub fn new(
        sinks: &[SinkSettings],
        routes: &[Route],
        node: &str,
        counts: impl Fn(&str) -> Arc<SinkCounts>,
        unrouted: &Arc<Count>,
        give_up: &watch::Receiver<bool>,
    ) -> Self {
        let mut of_records = Vec::new();
        let mut of_events = Vec::new();
        let mut ends = Vec::new();
        for sink in sinks {
            let Some(place) = open(&sink.kind, node) else { continue };
            let named = |route: &&Route| route.sinks.contains(&sink.name);
            let routes: Vec<Route> = routes.iter().filter(named).cloned().collect();
            let mut inbox = Inbox::default();
            if routes.iter().any(|route| route.is_for(AUDIT)) {
                let (sender, end) = mpsc::channel(INBOX);
                of_records.push((sink, routes.clone(), sender));
                inbox.records = Some(end);
            }
            if routes.iter().any(Route::is_for_events) {
                let (sender, end) = mpsc::channel(INBOX);
                of_events.push((sink, routes, sender));
                inbox.events = Some(end);
            }
            ends.push((sink, place, inbox));
        }
        let accounting = |sink: &SinkSettings, records: Option<Records>| Accounting {
            sink: sink.name.clone(),
            counts: counts(&sink.name),
            records,
            dead_letter: sink.queue.dead_letter.clone(),
        };
        let inputs = of_records.into_iter().map(|(sink, routes, inbox)| {
            // The delivery of a record is not recorded.
            LaneInput { routes, inbox, accounting: accounting(sink, None) }
        });
        let records = Records { inputs: Arc::new(inputs.collect()), tap: Tap::default() };
        let inputs = of_events.into_iter().map(|(sink, routes, inbox)| {
            let accounting = accounting(sink, Some(records.clone()));
            LaneInput { routes, inbox, accounting }
        });
        let events = inputs.collect();
        let lane = |(sink, place, inbox): (&SinkSettings, _, Inbox)| {
            let records = inbox.events.is_some().then(|| records.clone());
            Lane::new(&sink.queue, place, inbox, accounting(sink, records), give_up.clone())
        };
        let lanes = ends.into_iter().map(lane).collect();
        let unrouted = Arc::clone(unrouted);
        Self { lanes, fanout: Fanout { records: records.clone(), events, unrouted }, records }
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
