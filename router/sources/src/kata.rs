//! The source `kata`: polls a stock kata-agent for OOM kills, where no shim does. It reports which
//! container had a kill and nothing else.

use std::sync::Arc;
use std::time::Duration;

use coroner_proto::kata::{CheckRequest, GetOOMEventRequest, OOMEvent};
use coroner_proto::kata_ttrpc::{AgentServiceClient, HealthClient};
use tokio::sync::mpsc;
use tokio::time::Instant;
use ttrpc::asynchronous::Client;

use super::agent_client::rpc::{LinkError, TIMEOUT, classify, context, within};
use super::backoff::{Backoff, LACKING_DELAY};
use super::inferred::{announced, guest_lost};
use super::log_limiter::LogLimiter;
use super::rate_limits::RateLimits;
use super::shutdown::{Shutdown, StopReason};
use super::signal_stream::SignalStream;
use super::vm_liveness::{VmLiveness, wait_while_down};
use crate::SourceCounts;
use crate::envelope::{Ack, Envelope, Guest, Origin, unix_ms};
use crate::settings::Source;

/// Delay until the first health check. A poll lasts until the next kill, so the peer's health is
/// checked beside it.
const FIRST_CHECK: Duration = Duration::from_millis(200);
const CHECK: Duration = Duration::from_secs(30);
const CALL: &str = "GetOOMEvent";
/// An outage ends with the first valid event, or when the peer was healthy for this long. Without
/// it a peer that refuses each poll after a while, or reports only invalid names, would end and
/// begin an outage every second, each with a log line.
const STEADY: Duration = Duration::from_secs(20);

/// Follows one kata-agent.
#[derive(Debug)]
pub struct KataSource {
    source: Source,
    node: String,
    envelopes: mpsc::Sender<Envelope>,
    counts: Arc<SourceCounts>,
    guest: Option<Arc<Guest>>,
    rate_limits: RateLimits,
    liveness: Option<VmLiveness>,
    seq: u64,
    /// In an outage, until it is steady again.
    out: bool,
    /// The line "kata-agent polled" was logged and still holds.
    logged: bool,
}

impl KataSource {
    /// A source that has not connected yet.
    pub fn new(
        source: Source,
        node: String,
        envelopes: mpsc::Sender<Envelope>,
        counts: Arc<SourceCounts>,
        guest: Option<Arc<Guest>>,
    ) -> Self {
        let liveness = source.machine.as_ref().map(VmLiveness::new);
        Self {
            source,
            node,
            envelopes,
            counts,
            guest,
            rate_limits: RateLimits::new(),
            liveness,
            seq: 0,
            out: false,
            logged: false,
        }
    }

    /// Polls until shutdown. Logs one line for each outage, whatever the peer answers.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        // Events are consumed by the read and have no ids: each run of this router uses its own
        // stream id.
        let stream = SignalStream {
            node: self.node.clone(),
            guest: self.source.guest.clone(),
            id: format!("kata-{:016x}", rand::random::<u64>()),
        };
        let mut backoff = Backoff::new();
        let mut log_limiter = LogLimiter::new(&self.source.name, self.guest.is_some());
        loop {
            let mut answered = None;
            let ended = tokio::select! {
                ended = self.poll(&stream, &mut answered, &mut log_limiter) => ended,
                reason = shutdown.requested() => return self.leave(&stream, reason).await,
            };
            self.counts.connected(false);
            if let Some(since) = answered {
                backoff.up(since, Instant::now());
            }
            let Err(error) = ended else { return };
            let delay = backoff.after(&error, Instant::now());
            if !std::mem::replace(&mut self.out, true) && log_limiter.allow() {
                tracing::warn!(source = self.source.name, address = %self.source.address, %error, "kata-agent not polled");
            }
            self.logged = false;
            self.counts.set_problem(Some(error.to_string()));
            let gone = tokio::select! {
                gone = wait_while_down(self.liveness.as_mut(), &self.source.address, &error, delay) => gone,
                reason = shutdown.requested() => return self.leave(&stream, reason).await,
            };
            let Some(reason) = gone else { continue };
            self.lost(&stream, &reason).await;
            tokio::select! {
                () = tokio::time::sleep(LACKING_DELAY) => {}
                reason = shutdown.requested() => return self.leave(&stream, reason).await,
            }
        }
    }

    async fn leave(&mut self, stream: &SignalStream, reason: StopReason) {
        if reason == StopReason::Removed {
            self.lost(stream, "it was removed").await;
        }
    }

    /// kata-agent does not list containers: those that the guest was registered with are reported
    /// as `guest-lost`.
    async fn lost(&mut self, stream: &SignalStream, reason: &str) {
        self.counts.lost_for_good(true);
        let Some(machine) = self.source.machine.as_mut() else { return };
        // Reported once.
        let ids = machine.containers.take().unwrap_or_default();
        let origin = self.origin();
        for id in ids {
            let Ok(signal) = guest_lost(id.as_str(), stream, reason, unix_ms()) else {
                continue;
            };
            let envelope = Envelope::new(signal, Arc::clone(&origin), Ack::none());
            if self.envelopes.send(envelope).await.is_err() {
                return;
            }
        }
    }

    fn origin(&self) -> Arc<Origin> {
        Origin::new(&self.source, Vec::new(), self.guest.as_ref())
    }

    /// Runs one link until it ends. `Ok`: the signal channel is closed. `answered` is set to the
    /// time of the first healthy answer.
    async fn poll(
        &mut self,
        stream: &SignalStream,
        answered: &mut Option<Instant>,
        log_limiter: &mut LogLimiter,
    ) -> Result<(), LinkError> {
        let dial = async {
            match self.guest {
                Some(_) => {
                    coroner_transport::connect_guest(&self.source.address).await.map(|(socket, _)| socket)
                }
                None => coroner_transport::connect(&self.source.address).await,
            }
        };
        let socket = tokio::time::timeout(TIMEOUT, dial)
            .await
            .map_err(|_| LinkError::Silent { call: "connect", after: TIMEOUT })?
            .map_err(LinkError::Connect)?;
        let link = Client::new(socket);
        let (client, health) = (AgentServiceClient::new(link.clone()), HealthClient::new(link));
        let origin = self.origin();
        loop {
            let event = self.next(&client, &health, answered, log_limiter).await?;
            self.seq += 1;
            match announced(event.container_id, stream, self.seq, unix_ms()) {
                Ok(signal) => {
                    self.steady(log_limiter);
                    // Rate limit for a peer that answers at once, for ever.
                    self.rate_limits.lifecycle(true).await;
                    self.counts.signals.one();
                    let envelope = Envelope::new(signal, Arc::clone(&origin), Ack::none());
                    if self.envelopes.send(envelope).await.is_err() {
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

    /// Waits for an event for as long as the peer is healthy. The call has no timeout: a timeout at
    /// the moment of an event would lose it.
    async fn next(
        &mut self,
        client: &AgentServiceClient,
        health: &HealthClient,
        answered: &mut Option<Instant>,
        log_limiter: &mut LogLimiter,
    ) -> Result<OOMEvent, LinkError> {
        let request = GetOOMEventRequest::default();
        let poll = client.get_oom_event(ttrpc::context::Context::default(), &request);
        tokio::pin!(poll);
        let mut gap = FIRST_CHECK;
        loop {
            tokio::select! {
                event = &mut poll => {
                    let event = event.map_err(|error| classify(CALL, error))?;
                    self.up(answered);
                    return Ok(event);
                }
                () = tokio::time::sleep(gap) => {
                    let check = CheckRequest::default();
                    match within("Check", TIMEOUT, health.check(context(TIMEOUT), &check)).await {
                        // A peer that refuses a call is alive.
                        Ok(_) | Err(LinkError::Lacks { .. }) => self.up(answered),
                        Err(error) => return Err(error),
                    }
                    if !self.out || answered.is_some_and(|since| since.elapsed() >= STEADY) {
                        self.steady(log_limiter);
                    }
                    gap = CHECK;
                }
            }
        }
    }

    fn up(&mut self, answered: &mut Option<Instant>) {
        if answered.is_some() {
            return;
        }
        *answered = Some(Instant::now());
        if let Some(liveness) = &mut self.liveness {
            liveness.up();
        }
        self.counts.links.one();
        self.counts.lost_for_good(false);
        self.counts.connected(true);
        self.counts.set_problem(None);
    }
    /// Ends the outage, if there was one.
    fn steady(&mut self, log_limiter: &mut LogLimiter) {
        self.out = false;
        if !std::mem::replace(&mut self.logged, true) && log_limiter.allow() {
            tracing::info!(source = self.source.name, "kata-agent polled");
        }
    }
}
