//! The source `kata`: polls a stock kata-agent for OOM kills, where no shim does. It tells who was killed and nothing else.

use std::sync::Arc;
use std::time::Duration;

use coroner_proto::kata::{CheckRequest, GetOOMEventRequest, OOMEvent};
use coroner_proto::kata_ttrpc::{AgentServiceClient, HealthClient};
use coroner_proto::transport;
use tokio::sync::mpsc;
use tokio::time::Instant;
use ttrpc::asynchronous::Client;

use super::allowance::Allowance;
use super::backoff::{Backoff, LACKING_GAP};
use super::calls::{LinkError, PATIENCE, classify, context, within};
use super::decode::{Stream, announced};
use super::machine::{Machine, rest};
use super::orders::{Order, Orders};
use super::words::Words;
use crate::arrival::{Ack, Arrival, Guest, Origin, unix_ms};
use crate::config::Source;
use crate::counts::SourceCounts;

/// A poll waits for as long as nobody is killed: whether the peer lives is asked beside it, for the first time and then.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(30);
const CALL: &str = "GetOOMEvent";
/// An outage is over once the peer told something of use, or was well for so long. One that refuses each poll after a while, or tells nothing but names that
/// are none, would otherwise be well and gone again every second, and say so each time.
const STEADY: Duration = Duration::from_secs(20);

/// Follows one kata-agent.
#[derive(Debug)]
pub struct KataSource {
    source: Source,
    node: String,
    arrivals: mpsc::Sender<Arrival>,
    counts: Arc<SourceCounts>,
    guest: Option<Arc<Guest>>,
    allowance: Allowance,
    machine: Option<Machine>,
    seq: u64,
    /// It is out until it is steady again.
    out: bool,
    /// That it is polled was said, and holds.
    told: bool,
}

impl KataSource {
    /// A source that has not connected yet.
    pub fn new(
        source: Source,
        node: String,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<SourceCounts>,
        guest: Option<Arc<Guest>>,
    ) -> Self {
        let machine = source.machine.as_ref().map(Machine::new);
        Self {
            source,
            node,
            arrivals,
            counts,
            guest,
            allowance: Allowance::new(),
            machine,
            seq: 0,
            out: false,
            told: false,
        }
    }

    /// Polls until told to stop. One line for each outage, whatever the peer answers.
    pub async fn run(mut self, mut orders: Orders) {
        // Its events are taken by being read, and have no name of their own: each run of this router gives them one.
        let stream = Stream {
            node: self.node.clone(),
            guest: self.source.guest.clone(),
            id: format!("kata-{:016x}", rand::random::<u64>()),
        };
        let mut backoff = Backoff::new();
        let mut words = Words::of(&self.source.name, self.guest.is_some());
        loop {
            let mut answered = None;
            let ended = tokio::select! {
                ended = self.poll(&stream, &mut answered, &mut words) => ended,
                order = orders.heard() => return self.leave(&stream, order).await,
            };
            self.counts.connected(false);
            if let Some(since) = answered {
                backoff.up(since, Instant::now());
            }
            let Err(error) = ended else { return };
            let wait = backoff.after(&error, Instant::now());
            if !std::mem::replace(&mut self.out, true) && words.may() {
                tracing::warn!(source = self.source.name, address = %self.source.address, %error, "kata-agent not polled");
            }
            self.told = false;
            self.counts.troubled(Some(error.to_string()));
            let gone = tokio::select! {
                gone = rest(self.machine.as_mut(), &self.source.address, &error, wait) => gone,
                order = orders.heard() => return self.leave(&stream, order).await,
            };
            let Some(reason) = gone else { continue };
            self.lost(&stream, &reason).await;
            tokio::select! {
                () = tokio::time::sleep(LACKING_GAP) => {}
                order = orders.heard() => return self.leave(&stream, order).await,
            }
        }
    }

    async fn leave(&mut self, stream: &Stream, order: Order) {
        if order == Order::Removed {
            self.lost(stream, "it was removed").await;
        }
    }

    /// It tells no containers: those it was registered with are told lost.
    async fn lost(&mut self, stream: &Stream, reason: &str) {
        self.counts.lost_for_good(true);
        let Some(machine) = self.source.machine.as_mut() else { return };
        // Told once.
        let ids = machine.containers.take().unwrap_or_default();
        let origin = self.origin();
        for id in ids {
            let Ok(signal) = super::decode::gone(id.as_str(), stream, reason, unix_ms()) else { continue };
            let arrival = Arrival {
                signal,
                origin: Arc::clone(&origin),
                usage_bytes: None,
                memory_limit: None,
                attributes: Vec::new(),
                ack: Ack::nobody(),
            };
            if self.arrivals.send(arrival).await.is_err() {
                return;
            }
        }
    }

    fn origin(&self) -> Arc<Origin> {
        Arc::new(Origin {
            source: self.source.name.clone(),
            mode: self.source.mode,
            known: Vec::new(),
            guest: self.guest.clone(),
            shim: false,
        })
    }

    /// One link's life. `Ok`: nobody takes signals any more. `answered`: since when the peer is known to be well.
    async fn poll(
        &mut self,
        stream: &Stream,
        answered: &mut Option<Instant>,
        words: &mut Words,
    ) -> Result<(), LinkError> {
        let dial = async {
            match self.guest {
                Some(_) => transport::connect_guest(&self.source.address).await.map(|(socket, _)| socket),
                None => transport::connect(&self.source.address).await,
            }
        };
        let socket = tokio::time::timeout(PATIENCE, dial)
            .await
            .map_err(|_| LinkError::Silent { call: "connect", after: PATIENCE })?
            .map_err(LinkError::Connect)?;
        let link = Client::new(socket);
        let (client, health) = (AgentServiceClient::new(link.clone()), HealthClient::new(link));
        let origin = self.origin();
        loop {
            let event = self.next(&client, &health, answered, words).await?;
            self.seq += 1;
            match announced(event.container_id, stream, self.seq, unix_ms()) {
                Ok(signal) => {
                    self.steady(words);
                    // A stranger that answers at once, for ever, is read at this pace.
                    self.allowance.lifecycle(true).await;
                    self.counts.signals.one();
                    let arrival = Arrival {
                        signal,
                        origin: Arc::clone(&origin),
                        usage_bytes: None,
                        memory_limit: None,
                        attributes: Vec::new(),
                        ack: Ack::nobody(),
                    };
                    if self.arrivals.send(arrival).await.is_err() {
                        return Ok(());
                    }
                }
                Err(source) => {
                    self.counts.refused.one();
                    return Err(LinkError::Malformed { call: CALL, source });
                }
            }
        }
    }

    /// Waits for an event for as long as the peer lives. The call has no deadline: one that ended as an event came would lose it.
    async fn next(
        &mut self,
        client: &AgentServiceClient,
        health: &HealthClient,
        answered: &mut Option<Instant>,
        words: &mut Words,
    ) -> Result<OOMEvent, LinkError> {
        let request = GetOOMEventRequest::default();
        let poll = client.get_oom_event(ttrpc::context::Context::default(), &request);
        tokio::pin!(poll);
        let mut gap = FIRST_LOOK;
        loop {
            tokio::select! {
                event = &mut poll => {
                    let event = event.map_err(|error| classify(CALL, error))?;
                    self.up(answered);
                    return Ok(event);
                }
                () = tokio::time::sleep(gap) => {
                    let check = CheckRequest::default();
                    match within("Check", PATIENCE, health.check(context(PATIENCE), &check)).await {
                        // Whoever refuses a call is there.
                        Ok(_) | Err(LinkError::Lacks { .. }) => self.up(answered),
                        Err(error) => return Err(error),
                    }
                    if !self.out || answered.is_some_and(|since| since.elapsed() >= STEADY) {
                        self.steady(words);
                    }
                    gap = LOOK;
                }
            }
        }
    }

    fn up(&mut self, answered: &mut Option<Instant>) {
        if answered.is_some() {
            return;
        }
        *answered = Some(Instant::now());
        if let Some(machine) = &mut self.machine {
            machine.up();
        }
        self.counts.links.one();
        self.counts.lost_for_good(false);
        self.counts.connected(true);
        self.counts.troubled(None);
    }
    /// The outage, if there was one, is over.
    fn steady(&mut self, words: &mut Words) {
        self.out = false;
        if !std::mem::replace(&mut self.told, true) && words.may() {
            tracing::info!(source = self.source.name, "kata-agent polled");
        }
    }
}
