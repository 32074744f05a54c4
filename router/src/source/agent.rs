//! The source `agent`: reads a coroner-agent's state by cursor, and tells it what has been dealt with.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::BackoffBuilder;
use coroner_proto::agent::{self, HelloRequest, NextSignalsRequest};
use coroner_proto::agent_ttrpc::AgentClient;
use coroner_proto::transport;
use tokio::sync::{mpsc, watch};
use ttrpc::asynchronous::Client;

use super::calls::{LinkError, PATIENCE, context, snapshot, within};
use super::decode::{Stream, decode};
use super::watermark::Watermark;
use crate::arrival::{Ack, Arrival, Origin};
use crate::case::Known;
use crate::config::Source;
use crate::counts::SourceCounts;

/// Signals of this source that may be on their way at once. An agent tells state, and tells it again: what is not
/// read yet is safe there.
const UNDER_WAY: usize = 4096;
/// Signals asked for in one call: some 100 bytes each, far below a frame.
const BATCH: u32 = 256;
/// How long the agent holds a call with nothing to tell.
const WAIT: Duration = Duration::from_secs(30);
/// Acks are told this long after the first of them, so that a burst costs one call.
const ACK_AFTER: Duration = Duration::from_millis(20);
/// Between two tries to reach the agent.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(2);
/// A peer that lacks the protocol is asked again after this long: it may have been replaced.
const LACKING_GAP: Duration = Duration::from_secs(60);

/// Follows one agent through its restarts.
#[derive(Debug)]
pub struct AgentSource {
    source: Source,
    node: String,
    arrivals: mpsc::Sender<Arrival>,
    counts: Arc<SourceCounts>,
    /// What was told of each container in this stream, for the time when something was lost.
    told: HashMap<String, Told>,
    cursor: Cursor,
}

#[derive(Debug, Default)]
struct Told {
    kills_total: u64,
    exited: bool,
}

/// How far one stream was read and dealt with.
#[derive(Debug)]
struct Cursor {
    stream: String,
    after: u64,
    mark: Watermark,
    acks: mpsc::Receiver<u64>,
    done: mpsc::Sender<u64>,
    acked: u64,
}

impl Cursor {
    fn new(stream: String) -> Self {
        let (done, acks) = mpsc::channel(UNDER_WAY);
        Self { stream, after: 0, mark: Watermark::default(), acks, done, acked: 0 }
    }
}

impl AgentSource {
    /// A source that has not connected yet.
    pub fn new(
        source: Source,
        node: String,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<SourceCounts>,
    ) -> Self {
        let cursor = Cursor::new(String::new());
        Self { source, node, arrivals, counts, told: HashMap::new(), cursor }
    }

    /// Reads until told to stop, connecting anew whenever the link ends.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut reached = true;
        let gaps = backon::ExponentialBuilder::default()
            .with_min_delay(FIRST_GAP)
            .with_max_delay(LONGEST_GAP)
            .with_jitter()
            .without_max_times();
        let mut gap = gaps.build();
        loop {
            let mut read = false;
            let ended = tokio::select! {
                ended = self.link(&mut read) => ended,
                _ = stop.wait_for(|it| *it) => return,
            };
            self.counts.connected(false);
            if read {
                gap = gaps.build();
                reached = true;
            }
            let Err(error) = ended else { return };
            let wait = match &error {
                LinkError::Lacks { .. } => LACKING_GAP,
                _ => gap.next().unwrap_or(LONGEST_GAP),
            };
            if reached {
                tracing::warn!(source = self.source.name, address = %self.source.address, %error, "agent link ended");
                reached = false;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|it| *it) => return,
            }
        }
    }

    /// One link's life. `Ok`: nobody takes signals any more. `read` turns true once the agent has answered.
    async fn link(&mut self, read: &mut bool) -> Result<(), LinkError> {
        let socket = tokio::time::timeout(PATIENCE, transport::connect(&self.source.address))
            .await
            .map_err(|_| LinkError::Silent { call: "connect", after: PATIENCE })?
            .map_err(LinkError::Connect)?;
        let client = AgentClient::new(Client::new(socket));
        let request =
            HelloRequest { router_version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloRequest::default() };
        let hello = within("Hello", PATIENCE, client.hello(context(PATIENCE), &request)).await?;
        let origin = Arc::new(Origin {
            source: self.source.name.clone(),
            mode: self.source.mode,
            known: known(&hello.capabilities),
        });
        if hello.stream_id != self.cursor.stream {
            self.cursor = Cursor::new(hello.stream_id.clone());
            self.told.clear();
        }
        self.look_over(&client).await?;
        *read = true;
        self.counts.links.one();
        self.counts.connected(true);
        tracing::info!(
            source = self.source.name,
            agent = hello.agent_version,
            stream = hello.stream_id,
            cgroup_version = hello.cgroup_version,
            capabilities = hello.capabilities.join(","),
            "agent link up"
        );
        let stream = Stream {
            node: self.node.clone(),
            guest: self.source.guest.clone(),
            id: self.cursor.stream.clone(),
        };
        loop {
            self.collect_acks();
            if self.cursor.mark.under_way() + BATCH as usize > UNDER_WAY {
                // Nothing is read until something is dealt with: the agent keeps it.
                match self.cursor.acks.recv().await {
                    Some(seq) => self.cursor.mark.done(seq),
                    None => return Ok(()),
                }
                continue;
            }
            let answer = self.next(&client).await?;
            if answer.stream_id != self.cursor.stream {
                return Ok(()).and(Err(LinkError::Lacks {
                    call: "NextSignals",
                    reason: "the stream changed within a link".to_owned(),
                }));
            }
            for signal in answer.signals {
                if signal.seq <= self.cursor.after {
                    return Err(LinkError::Order { seq: signal.seq, after: self.cursor.after });
                }
                self.cursor.after = signal.seq;
                if !self.hand_on(signal, &stream, &origin).await {
                    return Ok(());
                }
            }
            if answer.lost > 0 {
                self.counts.lost.more(answer.lost);
                tracing::warn!(
                    source = self.source.name,
                    lost = answer.lost,
                    "the agent dropped signals; taking a snapshot"
                );
                if !self.make_good(&client, &stream, &origin).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for signals; meanwhile tells the agent what has been dealt with.
    async fn next(&mut self, client: &AgentClient) -> Result<agent::NextSignalsResponse, LinkError> {
        let cursor = &mut self.cursor;
        let request = NextSignalsRequest {
            stream_id: cursor.stream.clone(),
            after_seq: cursor.after,
            ack_seq: cursor.mark.level(),
            max: BATCH,
            wait_ms: u32::try_from(WAIT.as_millis()).expect("thirty seconds"),
            ..NextSignalsRequest::default()
        };
        cursor.acked = request.ack_seq;
        let limit = WAIT + PATIENCE;
        let next = within("NextSignals", limit, client.next_signals(context(limit), &request));
        tokio::pin!(next);
        loop {
            tokio::select! {
                answer = &mut next => return answer,
                Some(seq) = cursor.acks.recv() => cursor.mark.done(seq),
                () = tokio::time::sleep(ACK_AFTER), if cursor.mark.level() > cursor.acked => {
                    let request = NextSignalsRequest {
                        stream_id: cursor.stream.clone(),
                        after_seq: u64::MAX,
                        ack_seq: cursor.mark.level(),
                        max: 1,
                        ..NextSignalsRequest::default()
                    };
                    cursor.acked = request.ack_seq;
                    within("NextSignals", PATIENCE, client.next_signals(context(PATIENCE), &request)).await?;
                }
            }
        }
    }

    fn collect_acks(&mut self) {
        while let Ok(seq) = self.cursor.acks.try_recv() {
            self.cursor.mark.done(seq);
        }
    }

    /// False: nobody takes signals any more.
    async fn hand_on(&mut self, told: agent::Signal, stream: &Stream, origin: &Arc<Origin>) -> bool {
        let seq = told.seq;
        let container = told.container_id.clone();
        let facts = match &told.event {
            Some(agent::signal::Event::OomKill(kill)) => Some((Some(kill.total), false)),
            Some(agent::signal::Event::Exited(_)) if told.exec_id.is_none() => Some((None, true)),
            _ => None,
        };
        let (signal, usage_bytes) = match decode(told, stream, unix_ms()) {
            Ok(decoded) => decoded,
            Err(error) => {
                tracing::warn!(source = self.source.name, %error, "signal refused");
                self.counts.refused.one();
                self.cursor.mark.skip(seq);
                return true;
            }
        };
        if let Some((total, exited)) = facts {
            let told = self.told.entry(container).or_default();
            told.kills_total = total.unwrap_or(told.kills_total);
            told.exited |= exited;
        }
        self.cursor.mark.begin(seq);
        let ack = Ack::new(seq, self.cursor.done.clone());
        let arrival = Arrival { signal, origin: Arc::clone(origin), usage_bytes, ack };
        self.counts.signals.one();
        self.arrivals.send(arrival).await.is_ok()
    }

    /// What is there at connect: forgets what the agent no longer knows.
    async fn look_over(&mut self, client: &AgentClient) -> Result<(), LinkError> {
        match snapshot(client).await {
            Ok((containers, _)) => {
                let there: std::collections::HashSet<&str> =
                    containers.iter().map(|it| it.id.as_str()).collect();
                self.told.retain(|id, _| there.contains(id.as_str()));
                Ok(())
            }
            Err(LinkError::Lacks { call, reason }) => {
                tracing::warn!(
                    source = self.source.name,
                    call,
                    reason,
                    "the agent lacks a call; doing without"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Signals were lost: tells what the snapshot has beyond what was told. False: nobody takes signals any more.
    async fn make_good(
        &mut self,
        client: &AgentClient,
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> Result<bool, LinkError> {
        let (containers, as_of) = match snapshot(client).await {
            Err(LinkError::Lacks { .. }) => return Ok(true),
            other => other?,
        };
        for container in containers {
            let (told, exited) =
                self.told.get(&container.id).map_or((0, false), |told| (told.kills_total, told.exited));
            // Kills from before the agent came are no signals.
            let kills_total = told.max(container.kills_before.unwrap_or(0));
            let mut missed = Vec::new();
            if let Some(total) = container.kills_total.filter(|total| *total > kills_total) {
                missed.push(agent::signal::Event::OomKill(agent::OomKill {
                    total,
                    added: total - kills_total,
                    cgroup: container.cgroup.clone(),
                    limit_bytes: container.limit_bytes,
                    usage_bytes: container.usage_bytes,
                    ..agent::OomKill::default()
                }));
            }
            if let (Some(exit), false) = (container.exit.into_option(), exited) {
                missed.push(agent::signal::Event::Exited(exit));
            }
            for event in missed {
                let signal = agent::Signal {
                    seq: as_of,
                    container_id: container.id.clone(),
                    event: Some(event),
                    ..agent::Signal::default()
                };
                if !self.hand_on(signal, stream, origin).await {
                    return Ok(false);
                }
            }
        }
        self.cursor.after = self.cursor.after.max(as_of);
        Ok(true)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn known(capabilities: &[String]) -> Vec<Known> {
    let named = |name: &str| match name {
        "kill-count" => Some(Known::KillCount),
        "victim" => Some(Known::Victim),
        "exit-status" => Some(Known::ExitStatus),
        "pressure" => Some(Known::Pressure),
        "memory" => Some(Known::Memory),
        _ => None,
    };
    capabilities.iter().filter_map(|name| named(name)).collect()
}
