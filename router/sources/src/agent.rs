//! The source `agent`: reads a coroner-agent's state by cursor and acknowledges what was processed.

use std::sync::Arc;

use coroner_proto::agent::HelloRequest;
use coroner_transport::Refused;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::agent_client::conn::{AgentConn, BATCH};
use super::agent_client::handshake::check_hello;
use super::agent_client::rpc::{LinkError, TIMEOUT};
use super::backoff::Backoff;
use super::cursor::{IN_FLIGHT, StreamCursor};
use super::evidence_requests::EvidenceRequests;
use super::final_count::{FinalCounter, FinalCounters};
use super::inferred::guest_lost;
use super::inventory::Inventory;
use super::log_limiter::LogLimiter;
use super::rate_limits::RateLimits;
use super::recovered::{LastKnown, RecoveredSource};
use super::shutdown::{Shutdown, StopReason};
use super::signal_stream::SignalStream;
use super::vm_liveness::{VmLiveness, wait_while_down};
use crate::SourceCounts;
use crate::envelope::{Ack, Envelope, Guest, Origin, unix_ms};
use crate::settings::Source;

/// In-flight signals of one guest at most. All in-flight signals share one queue for containerd:
/// the more of them belong to one guest, the longer the others wait.
const GUEST_IN_FLIGHT: usize = 512;

/// Follows one agent through its restarts.
#[derive(Debug)]
pub struct AgentSource {
    pub(super) source: Source,
    pub(super) node: String,
    pub(super) envelopes: mpsc::Sender<Envelope>,
    pub(super) counts: Arc<SourceCounts>,
    /// The guest, where the source is not trusted; its rate limits, and the liveness of its VM.
    pub(super) guest: Option<Arc<Guest>>,
    pub(super) rate_limits: RateLimits,
    pub(super) log_limiter: LogLimiter,
    pub(super) liveness: Option<VmLiveness>,
    /// State reported for each container in this stream. Used to fill the gap after signals were
    /// lost.
    pub(super) inventory: Inventory,
    pub(super) cursor: StreamCursor,
    /// One permit per in-flight signal: the source's back-pressure.
    pub(super) permits: Arc<Semaphore>,
    pub(super) is_lost: bool,
    pub(super) recovered: RecoveredSource,
    /// State to reconcile with the agent's next snapshot.
    pub(super) last_known: Option<LastKnown>,
    final_counters: FinalCounters,
    /// Set while the link of a guest's agent is up.
    final_counter: Option<FinalCounter>,
    /// Set while the link is up.
    pub(super) evidence: Option<EvidenceRequests>,
    /// True until the agent has answered this run of the router.
    first: bool,
    /// Exits up to this sequence number happened before this run of the router. The journal knows
    /// that their containers ran.
    pub(super) before: u64,
}

impl AgentSource {
    /// A source that is not connected yet. `guest` is set where the source is not trusted,
    /// `recovered` is its state from the journal, and `final_counters` is the registry it joins
    /// while its link is up.
    pub fn new(
        source: Source,
        node: String,
        envelopes: mpsc::Sender<Envelope>,
        counts: Arc<SourceCounts>,
        guest: Option<Arc<Guest>>,
        mut recovered: RecoveredSource,
        final_counters: FinalCounters,
    ) -> Self {
        let mut liveness = source.machine.as_ref().map(VmLiveness::new);
        let journal = recovered.journal.clone();
        let cursor = match recovered.cursor.take() {
            Some(cursor) => StreamCursor::resume(cursor, journal),
            None => StreamCursor::new(source.name.clone(), journal, String::new()),
        };
        let inventory = Inventory::recovered(&recovered.running);
        if let Some(liveness) = liveness.as_mut().filter(|_| !inventory.is_empty()) {
            liveness.up();
        }
        let permits = Arc::new(Semaphore::new(if guest.is_some() { GUEST_IN_FLIGHT } else { IN_FLIGHT }));
        let rate_limits = RateLimits::new();
        let log_limiter = LogLimiter::new(&source.name, guest.is_some());
        Self {
            source,
            node,
            envelopes,
            counts,
            guest,
            rate_limits,
            log_limiter,
            liveness,
            inventory,
            cursor,
            permits,
            is_lost: false,
            last_known: Some(LastKnown { running: recovered.running.clone(), other_stream: false }),
            recovered,
            final_counters,
            final_counter: None,
            evidence: None,
            first: true,
            before: 0,
        }
    }

    /// Reads until shutdown and reconnects whenever the link ends. When a guest is gone, reports
    /// `guest-lost` for each of its running containers.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut reached = true;
        let mut backoff = Backoff::new();
        loop {
            let mut read = None;
            let ended = tokio::select! {
                ended = self.link(&mut read) => ended,
                reason = shutdown.requested() => return self.leave(reason).await,
            };
            self.counts.connected(false);
            self.final_counter = None;
            self.evidence = None;
            if let Some(since) = read {
                backoff.up(since, Instant::now());
                reached = true;
            }
            let Err(error) = ended else { return };
            let delay = backoff.after(&error, Instant::now());
            if std::mem::replace(&mut reached, false) && self.log_limiter.allow() {
                tracing::warn!(source = self.source.name, address = %self.source.address, %error, "agent link ended");
            }
            self.counts.set_problem(Some(error.to_string()));
            let gone = tokio::select! {
                gone = wait_while_down(self.liveness.as_mut(), &self.source.address, &error, delay) => gone,
                reason = shutdown.requested() => return self.leave(reason).await,
            };
            let Some(reason) = gone else { continue };
            let for_good = self.liveness.as_ref().is_some_and(VmLiveness::has_ended);
            self.lost(&reason).await;
            tokio::select! {
                // The guest may only have been too busy to answer: keep dialling.
                () = tokio::time::sleep(delay), if !for_good => {}
                reason = shutdown.requested() => return self.leave(reason).await,
            }
        }
    }

    async fn leave(&mut self, reason: StopReason) {
        if reason == StopReason::Removed {
            self.lost("it was removed").await;
        }
    }

    /// Reports `guest-lost` for every running container.
    pub(super) async fn lost(&mut self, reason: &str) {
        for (id, kills_total) in
            self.last_known.take().map(|last_known| last_known.running).into_iter().flatten()
        {
            self.inventory.add_if_unknown(id, kills_total);
        }
        let mut ids: Vec<String> = self.inventory.running().into_keys().collect();
        ids.sort_unstable();
        if !std::mem::replace(&mut self.is_lost, true) {
            tracing::warn!(guest = self.source.name, reason, containers = ids.len(), "guest lost");
        }
        self.counts.lost_for_good(true);
        let origin = Origin::new(&self.source, Vec::new(), self.guest.as_ref());
        for id in ids {
            if let Some(tracked) = self.inventory.get_mut(&id) {
                tracked.lost = true;
            }
            let stream = self.stream();
            let Ok(signal) = guest_lost(&id, &stream, reason, unix_ms()) else { continue };
            if let Some(journal) = &self.recovered.journal {
                journal.gone(signal.target.container_id.clone());
            }
            let envelope = Envelope::new(signal, Arc::clone(&origin), Ack::none());
            if self.envelopes.send(envelope).await.is_err() {
                return;
            }
        }
    }

    /// Whether the running containers must be known: to report their loss with the VM, and to
    /// reconcile after the router was down.
    pub(super) fn tracks_inventory(&self) -> bool {
        self.liveness.is_some() || self.recovered.journal.is_some()
    }

    fn stream(&self) -> SignalStream {
        SignalStream {
            node: self.node.clone(),
            guest: self.source.guest.clone(),
            id: self.cursor.stream.clone(),
        }
    }

    async fn connect(&self) -> Result<(Socket, Option<Refused>), LinkError> {
        let dial = async {
            if self.guest.is_some() {
                let (socket, refused) = coroner_transport::connect_guest(&self.source.address).await?;
                return Ok((socket, Some(refused)));
            }
            Ok((coroner_transport::connect(&self.source.address).await?, None))
        };
        tokio::time::timeout(TIMEOUT, dial)
            .await
            .map_err(|_| LinkError::Silent { call: "connect", after: TIMEOUT })?
            .map_err(LinkError::Connect)
    }

    /// Runs one link until it ends. `Ok`: the signal channel is closed. `read` is set to the time
    /// of the agent's first answer.
    async fn link(&mut self, read: &mut Option<Instant>) -> Result<(), LinkError> {
        let (socket, refused) = self.connect().await?;
        let conn = AgentConn::new(Client::new(socket));
        match self.follow(&conn, read).await {
            Err(_) if refused.is_some_and(|it| it.get()) => Err(LinkError::Oversized),
            other => other,
        }
    }

    async fn follow(&mut self, conn: &AgentConn, read: &mut Option<Instant>) -> Result<(), LinkError> {
        let request =
            HelloRequest { router_version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloRequest::default() };
        let agent = check_hello(conn.hello(&request).await?)
            .map_err(|source| LinkError::Malformed { call: "Hello", source })?;
        let origin = Origin::new(&self.source, agent.known.clone(), self.guest.as_ref());
        if agent.stream != self.cursor.stream {
            // A restarted agent does not know what ended before its start.
            let running = self
                .last_known
                .take()
                .map_or_else(|| self.inventory.running(), |last_known| last_known.running);
            self.last_known = Some(LastKnown { running, other_stream: true });
            self.cursor = StreamCursor::new(
                self.source.name.clone(),
                self.recovered.journal.clone(),
                agent.stream.clone(),
            );
            self.inventory.clear();
        }
        let stream = self.stream();
        if let Some((containers, as_of)) = self.take_snapshot(conn, &stream).await? {
            if std::mem::replace(&mut self.first, false) {
                self.before = as_of;
            }
            if let Some(last_known) = self.last_known.take()
                && !self.reconcile(last_known, &containers, &stream, &origin).await
            {
                return Ok(());
            }
        }
        *read = Some(Instant::now());
        self.link_up();
        let guest = self.source.guest.as_deref();
        self.final_counter =
            guest.map(|guest| self.final_counters.add(guest, conn.clone(), self.cursor.after));
        self.evidence = Some(EvidenceRequests::start(
            conn.clone(),
            self.stream(),
            Arc::clone(&origin),
            self.envelopes.clone(),
        ));
        if self.log_limiter.allow() {
            tracing::info!(
                source = self.source.name,
                agent = agent.version,
                stream = agent.stream,
                placement = agent.placement,
                cgroup_version = agent.cgroup_version,
                "agent link up"
            );
        }
        while self.read_batch(conn, &stream, &origin).await? {}
        Ok(())
    }

    fn link_up(&mut self) {
        if let Some(liveness) = &mut self.liveness {
            liveness.up();
        }
        self.is_lost = false;
        self.counts.lost_for_good(false);
        self.counts.links.one();
        self.counts.connected(true);
        self.counts.set_problem(None);
    }

    /// Processes one answer, or waits for room. False: the signal channel is closed.
    async fn read_batch(
        &mut self,
        conn: &AgentConn,
        stream: &SignalStream,
        origin: &Arc<Origin>,
    ) -> Result<bool, LinkError> {
        self.cursor.collect_acks();
        if self.permits.available_permits() < BATCH as usize {
            // Back-pressure: nothing more is read until a signal is acknowledged. The agent keeps
            // it meanwhile.
            tokio::select! {
                room = self.permits.acquire_many(BATCH) => drop(room),
                Some(seq) = self.cursor.acks.recv() => self.cursor.watermark.done(seq),
            }
            return Ok(true);
        }
        let tracks_inventory = self.tracks_inventory();
        let answer = self.cursor.next(conn, tracks_inventory).await?;
        if answer.stream_id != self.cursor.stream {
            return Err(LinkError::Stream);
        }
        for signal in answer.signals {
            if signal.seq <= self.cursor.after {
                return Err(LinkError::Order { seq: signal.seq, after: self.cursor.after });
            }
            self.cursor.after = signal.seq;
            if !self.receive(signal, stream, origin).await {
                return Ok(false);
            }
        }
        if let Some(final_counter) = &self.final_counter {
            final_counter.read(self.cursor.after);
        }
        self.counts.lost.more(answer.pressure_lost.saturating_sub(self.cursor.pressure_lost));
        self.cursor.pressure_lost = answer.pressure_lost;
        if answer.lost > 0 {
            self.counts.lost.more(answer.lost);
            if self.log_limiter.allow() {
                tracing::warn!(
                    source = self.source.name,
                    lost = answer.lost,
                    "the agent dropped signals; taking a snapshot"
                );
            }
            self.cursor.wait_for_snapshot().await;
            if !self.fill_gap(conn, stream, origin).await? {
                return Ok(false);
            }
        }
        if tracks_inventory && answer.appeared != self.cursor.appeared {
            (self.cursor.appeared, self.cursor.snapshot_due) = (answer.appeared, true);
        }
        self.snapshot_new(conn, stream).await?;
        Ok(true)
    }
}
