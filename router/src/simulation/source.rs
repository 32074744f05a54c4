//! A simulated source: it keeps its signals until they are acknowledged, as an agent does, and sends
//! those that were not once more to the next router.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::fault::Sabotage;
use super::model::Model;
use super::scenario::Script;
use super::violation::Violation;
use coroner_journal::{Cursor, Journal};
use coroner_sources::envelope::{Ack, Envelope};

/// Acknowledgements that wait: more than signals in one run.
const ACKS: usize = 256;

/// The connection to one router.
#[derive(Debug)]
struct RouterConnection {
    envelopes: mpsc::Sender<Envelope>,
    journal: Journal,
    /// The read position.
    after: u64,
    in_flight: BTreeSet<u64>,
    done: mpsc::Sender<u64>,
    acks: mpsc::Receiver<u64>,
}

/// One source, which outlives the router.
#[derive(Debug)]
pub(super) struct SimulatedSource {
    script: Script,
    /// Everything up to here was acknowledged to the agent.
    acknowledged: u64,
    connection: Option<RouterConnection>,
}

impl SimulatedSource {
    pub(super) fn new(script: Script) -> Self {
        Self { script, acknowledged: 0, connection: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.script.origin.source
    }

    /// A router has started; it resumes at the cursor in its journal.
    pub(super) fn connect(
        &mut self,
        envelopes: mpsc::Sender<Envelope>,
        journal: Journal,
        cursor: Option<&Cursor>,
    ) {
        let after = cursor.map_or(0, |cursor| cursor.seq).max(self.acknowledged);
        let (done, acks) = mpsc::channel(ACKS);
        let in_flight = BTreeSet::new();
        self.connection = Some(RouterConnection { envelopes, journal, after, in_flight, done, acks });
    }

    /// The router is gone.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    pub(super) fn can_send(&self) -> bool {
        let Some(connection) = &self.connection else { return false };
        connection.after < self.script.signals.len() as u64 && connection.envelopes.capacity() > 0
    }

    /// Sends the next signal.
    pub(super) fn send(&mut self, model: &mut Model, fault: Option<Sabotage>) {
        let Some(connection) = &mut self.connection else { return };
        let signal = self.script.signals[usize::try_from(connection.after).unwrap()].clone();
        connection.after += 1;
        connection.in_flight.insert(connection.after);
        model.sent(&signal.id);
        let envelope = Envelope {
            signal,
            origin: Arc::clone(&self.script.origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::new(connection.after, connection.done.clone(), None),
        };
        connection.envelopes.try_send(envelope).expect("there is room");
        if fault == Some(Sabotage::AcknowledgedBeforeWrite) {
            connection.done.try_send(connection.after).expect("there is room");
        }
    }

    pub(super) fn has_acks(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.acks.is_empty())
    }

    /// Receives one acknowledgement.
    pub(super) fn receive_ack(&mut self, model: &mut Model) -> Result<(), Violation> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let Ok(seq) = connection.acks.try_recv() else { return Ok(()) };
        connection.in_flight.remove(&seq);
        model.acknowledged(&self.script.signals[usize::try_from(seq - 1).unwrap()].id)
    }

    /// Everything up to here was acknowledged to the router's end.
    fn level(&self) -> u64 {
        let Some(connection) = &self.connection else { return self.acknowledged };
        connection.in_flight.first().map_or(connection.after, |lowest| lowest - 1)
    }

    pub(super) fn can_report(&self) -> bool {
        self.level() > self.acknowledged
    }

    /// Writes the cursor, and reports it to the agent, which drops what it kept.
    pub(super) fn report(&mut self) {
        let seq = self.level();
        if let Some(connection) = &self.connection {
            let source = self.name().to_owned();
            connection.journal.cursor(Cursor { source, stream: "stream".to_owned(), seq });
        }
        self.acknowledged = seq;
    }

    /// Whether the agent has nothing left.
    pub(super) fn is_done(&self) -> bool {
        self.acknowledged == self.script.signals.len() as u64
    }
}
