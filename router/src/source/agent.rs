//! The source `agent`: reads a coroner-agent's state by cursor, and tells it what has been dealt with.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::{self, HelloRequest, NextSignalsRequest};
use coroner_proto::guard::Refused;
use coroner_proto::transport;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::allowance::{self, Allowance};
use super::backoff::Backoff;
use super::calls::{LinkError, PATIENCE};
use super::decode::{Stream, decode, gone};
use super::greeting::greeting;
use super::machine::{Machine, rest};
use super::orders::{Order, Orders};
use super::past::History;
use super::peer::{BATCH, Peer};
use super::reconcile::First;
use super::watermark::Watermark;
use super::words::Words;
use crate::arrival::{Ack, Arrival, Guest, Origin, unix_ms};
use crate::config::Source;
use crate::counts::SourceCounts;
use crate::journal::{self, Lives};
use crate::signal::{ContainerId, Event};

/// Signals of this source that may be on their way at once. An agent tells state, and tells it again: what is not
/// read yet is safe there.
const UNDER_WAY: usize = 4096;
/// The same of a guest. All of them wait in line for one containerd: the more of one guest's are in it, the longer the others' wait.
const UNDER_WAY_OF_GUEST: usize = 512;
/// How long the agent holds a call with nothing to tell.
const WAIT: Duration = Duration::from_secs(30);
/// Acks are told this long after the first of them, so that a burst costs one call.
const ACK_AFTER: Duration = Duration::from_millis(200);
/// Snapshots for containers that appeared, or because something was lost, at most this often: a storm of them costs a few, and a guest that always loses
/// or always has something new gets no more.
const SNAPSHOT_GAP: Duration = Duration::from_millis(200);
/// Containers remembered of one guest, those that ended included.
const REMEMBERED: usize = 2 * allowance::CONTAINERS;
/// Containers of a snapshot: more than any agent has, on a node or in a guest.
const THERE: usize = 16 << 10;
const THERE_IN_GUEST: usize = 2 * REMEMBERED;

/// Follows one agent through its restarts.
#[derive(Debug)]
pub struct AgentSource {
    source: Source,
    node: String,
    pub(super) arrivals: mpsc::Sender<Arrival>,
    pub(super) counts: Arc<SourceCounts>,
    /// Who speaks, where it is not trusted; what it may send, and whether its machine is there.
    guest: Option<Arc<Guest>>,
    allowance: Allowance,
    words: Words,
    machine: Option<Machine>,
    /// What was told of each container in this stream, for the time when something was lost.
    told: HashMap<String, Told>,
    cursor: Cursor,
    /// For signals that are not dealt with yet.
    places: Arc<Semaphore>,
    is_lost: bool,
    pub(super) history: History,
    /// The agent has not answered this run of the router yet.
    first: bool,
    /// Exits up to here came before this run of the router: it knows that their containers lived.
    before: u64,
}

#[derive(Debug, Default)]
struct Told {
    kills_total: u64,
    exited: bool,
    /// Its guest was lost: nothing that is said of it counts any more.
    lost: bool,
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
    /// As the journal has it.
    written: u64,
    /// Containers that had appeared when it was last told, and whether they are to be looked for.
    appeared: u64,
    unlooked: bool,
    /// When the last snapshot was taken.
    looked: Option<Instant>,
    pressure_lost: u64,
}

impl Cursor {
    fn new(stream: String) -> Self {
        Self::from(journal::Cursor { source: String::new(), stream, seq: 0 })
    }

    /// One that goes on where an earlier run of the router was.
    fn from(journal::Cursor { stream, seq, .. }: journal::Cursor) -> Self {
        let (done, acks) = mpsc::channel(UNDER_WAY);
        let mut mark = Watermark::default();
        mark.skip(seq);
        Self {
            stream,
            after: seq,
            mark,
            acks,
            done,
            acked: 0,
            written: seq,
            appeared: 0,
            unlooked: false,
            looked: None,
            pressure_lost: 0,
        }
    }
}

impl AgentSource {
    /// A source that has not connected yet. `guest`: who speaks, where it is not trusted. `history`: what an earlier run of the router knew of it.
    pub fn new(
        source: Source,
        node: String,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<SourceCounts>,
        guest: Option<Arc<Guest>>,
        mut history: History,
    ) -> Self {
        let mut machine = source.machine.as_ref().map(Machine::new);
        let cursor = history.cursor.take().map_or_else(|| Cursor::new(String::new()), Cursor::from);
        let lived = |(id, kills): (&String, &Option<u64>)| {
            (id.clone(), Told { kills_total: kills.unwrap_or(0), ..Told::default() })
        };
        let told: HashMap<String, Told> = history.lives.iter().map(lived).collect();
        if let Some(machine) = machine.as_mut().filter(|_| !told.is_empty()) {
            machine.up();
        }
        let places = Arc::new(Semaphore::new(if guest.is_some() { UNDER_WAY_OF_GUEST } else { UNDER_WAY }));
        let allowance = Allowance::new();
        let words = Words::of(&source.name, guest.is_some());
        Self {
            source,
            node,
            arrivals,
            counts,
            guest,
            allowance,
            words,
            machine,
            told,
            cursor,
            places,
            is_lost: false,
            history,
            first: true,
            before: 0,
        }
    }

    /// Reads until told to stop, connecting anew whenever the link ends. What a guest leaves behind when it is gone is told.
    pub async fn run(mut self, mut orders: Orders) {
        let mut reached = true;
        let mut backoff = Backoff::new();
        loop {
            let mut read = None;
            let ended = tokio::select! {
                ended = self.link(&mut read) => ended,
                order = orders.heard() => return self.leave(order).await,
            };
            self.counts.connected(false);
            if let Some(since) = read {
                backoff.up(since, Instant::now());
                reached = true;
            }
            let Err(error) = ended else { return };
            let wait = backoff.after(&error, Instant::now());
            if std::mem::replace(&mut reached, false) && self.words.may() {
                tracing::warn!(source = self.source.name, address = %self.source.address, %error, "agent link ended");
            }
            self.counts.troubled(Some(error.to_string()));
            let gone = tokio::select! {
                gone = rest(self.machine.as_mut(), &self.source.address, &error, wait) => gone,
                order = orders.heard() => return self.leave(order).await,
            };
            let Some(reason) = gone else { continue };
            let for_good = self.machine.as_ref().is_some_and(Machine::has_ended);
            self.lost(&reason).await;
            tokio::select! {
                // It may only have been too busy to answer, and then it comes again.
                () = tokio::time::sleep(wait), if !for_good => {}
                order = orders.heard() => return self.leave(order).await,
            }
        }
    }

    async fn leave(&mut self, order: Order) {
        if order == Order::Removed {
            self.lost("it was removed").await;
        }
    }

    /// Tells of every container that still lived that its guest is gone.
    async fn lost(&mut self, reason: &str) {
        let mut ids: Vec<String> = self
            .told
            .iter()
            .filter(|(_, told)| !told.exited && !told.lost)
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort_unstable();
        if !std::mem::replace(&mut self.is_lost, true) {
            tracing::warn!(guest = self.source.name, reason, containers = ids.len(), "guest lost");
        }
        self.counts.lost_for_good(true);
        let origin = Arc::new(Origin {
            source: self.source.name.clone(),
            mode: self.source.mode,
            known: Vec::new(),
            guest: self.guest.clone(),
        });
        for id in ids {
            if let Some(told) = self.told.get_mut(&id) {
                told.lost = true;
            }
            let stream = self.stream();
            let Ok(signal) = gone(&id, &stream, reason, unix_ms()) else { continue };
            if let Some(journal) = &self.history.journal {
                journal.gone(signal.target.container_id.clone());
            }
            let arrival =
                Arrival { signal, origin: Arc::clone(&origin), usage_bytes: None, ack: Ack::nobody() };
            if self.arrivals.send(arrival).await.is_err() {
                return;
            }
        }
    }

    fn stream(&self) -> Stream {
        Stream { node: self.node.clone(), guest: self.source.guest.clone(), id: self.cursor.stream.clone() }
    }

    async fn connect(&self) -> Result<(Socket, Option<Refused>), LinkError> {
        let dial = async {
            if self.guest.is_some() {
                let (socket, refused) = transport::connect_guest(&self.source.address).await?;
                return Ok((socket, Some(refused)));
            }
            Ok((transport::connect(&self.source.address).await?, None))
        };
        tokio::time::timeout(PATIENCE, dial)
            .await
            .map_err(|_| LinkError::Silent { call: "connect", after: PATIENCE })?
            .map_err(LinkError::Connect)
    }

    /// One link's life. `Ok`: nobody takes signals any more. `read`: since when the agent answers.
    async fn link(&mut self, read: &mut Option<Instant>) -> Result<(), LinkError> {
        let (socket, refused) = self.connect().await?;
        let peer = Peer::new(Client::new(socket));
        match self.follow(&peer, read).await {
            Err(_) if refused.is_some_and(|it| it.get()) => Err(LinkError::Oversized),
            other => other,
        }
    }

    async fn follow(&mut self, peer: &Peer, read: &mut Option<Instant>) -> Result<(), LinkError> {
        let request =
            HelloRequest { router_version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloRequest::default() };
        let agent = greeting(peer.hello(&request).await?)
            .map_err(|source| LinkError::Malformed { call: "Hello", source })?;
        let origin = Arc::new(Origin {
            source: self.source.name.clone(),
            mode: self.source.mode,
            known: agent.known.clone(),
            guest: self.guest.clone(),
        });
        let other_stream = agent.stream != self.cursor.stream;
        if other_stream {
            self.cursor = Cursor::new(agent.stream.clone());
            self.told.clear();
        }
        let stream = self.stream();
        let there = self.look_over(peer, &stream).await?;
        if let (true, Some((containers, as_of))) = (self.first, &there) {
            self.before = *as_of;
            let lives = self.history.lives.clone();
            let first = First { containers, other_stream };
            if !self.reconcile(&lives, first, &stream, &origin).await {
                return Ok(());
            }
        }
        drop(there);
        self.first = false;
        *read = Some(Instant::now());
        if let Some(machine) = &mut self.machine {
            machine.up();
        }
        self.is_lost = false;
        self.counts.lost_for_good(false);
        self.counts.links.one();
        self.counts.connected(true);
        self.counts.troubled(None);
        if self.words.may() {
            tracing::info!(
                source = self.source.name,
                agent = agent.version,
                stream = agent.stream,
                placement = agent.placement,
                cgroup_version = agent.cgroup_version,
                "agent link up"
            );
        }
        loop {
            self.collect_acks();
            if self.places.available_permits() < BATCH as usize {
                // Nothing is read until something is dealt with: the agent keeps it.
                tokio::select! {
                    room = self.places.acquire_many(BATCH) => drop(room),
                    Some(seq) = self.cursor.acks.recv() => self.cursor.mark.done(seq),
                }
                continue;
            }
            let answer = self.next(peer).await?;
            if answer.stream_id != self.cursor.stream {
                return Err(LinkError::Stream);
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
            self.counts.lost.more(answer.pressure_lost.saturating_sub(self.cursor.pressure_lost));
            self.cursor.pressure_lost = answer.pressure_lost;
            if answer.lost > 0 {
                self.counts.lost.more(answer.lost);
                if self.words.may() {
                    tracing::warn!(
                        source = self.source.name,
                        lost = answer.lost,
                        "the agent dropped signals; taking a snapshot"
                    );
                }
                self.gap().await;
                if !self.make_good(peer, &stream, &origin).await? {
                    return Ok(());
                }
            }
            if self.asks_who_lives() && answer.appeared != self.cursor.appeared {
                (self.cursor.appeared, self.cursor.unlooked) = (answer.appeared, true);
            }
            self.look_for_new(peer, &stream).await?;
        }
    }

    /// Containers appeared: who lives is known within a fifth of a second, so that the end of each can be told if the guest is gone. Until then signals are
    /// read on: a kill waits for no snapshot.
    async fn look_for_new(&mut self, peer: &Peer, stream: &Stream) -> Result<(), LinkError> {
        if !self.cursor.unlooked || !self.until_look().is_zero() {
            return Ok(());
        }
        self.cursor.unlooked = false;
        self.cursor.looked = Some(Instant::now());
        self.look_over(peer, stream).await.map(drop)
    }

    /// Until a snapshot may be taken again.
    fn until_look(&self) -> Duration {
        self.cursor.looked.map_or(Duration::ZERO, |looked| SNAPSHOT_GAP.saturating_sub(looked.elapsed()))
    }

    /// Waits until a snapshot may be taken again.
    async fn gap(&mut self) {
        tokio::time::sleep(self.until_look()).await;
        self.cursor.looked = Some(Instant::now());
    }

    /// Whether it must be known who lives: to tell their ends when the machine is gone, and after a time in which no router ran.
    fn asks_who_lives(&self) -> bool {
        self.machine.is_some() || self.history.journal.is_some()
    }

    /// Writes down how far everything is dealt with, so that the next run of the router reads on from there.
    fn write_cursor(&mut self) {
        let cursor = &mut self.cursor;
        let level = cursor.mark.level();
        if let Some(journal) = self.history.journal.as_ref().filter(|_| level > cursor.written) {
            cursor.written = level;
            let (source, stream) = (self.source.name.clone(), cursor.stream.clone());
            journal.cursor(journal::Cursor { source, stream, seq: level });
        }
    }

    /// Waits for signals; meanwhile tells the agent what has been dealt with.
    async fn next(&mut self, peer: &Peer) -> Result<agent::NextSignalsResponse, LinkError> {
        self.write_cursor();
        let asks = self.asks_who_lives();
        // No longer than until those that appeared may be looked for; not so short that it would be asked again at once.
        let wait = if self.cursor.unlooked { self.until_look().max(Duration::from_millis(5)) } else { WAIT };
        let cursor = &mut self.cursor;
        let request = NextSignalsRequest {
            stream_id: cursor.stream.clone(),
            after_seq: cursor.after,
            ack_seq: cursor.mark.level(),
            max: BATCH,
            wait_ms: u32::try_from(wait.as_millis()).expect("thirty seconds at most"),
            appeared: asks.then_some(cursor.appeared),
            ..NextSignalsRequest::default()
        };
        cursor.acked = request.ack_seq;
        let next = peer.next_signals(&request, WAIT + PATIENCE);
        tokio::pin!(next);
        loop {
            let cursor = &mut self.cursor;
            tokio::select! {
                answer = &mut next => return answer,
                Some(seq) = cursor.acks.recv() => cursor.mark.done(seq),
                () = tokio::time::sleep(ACK_AFTER), if cursor.mark.level() > cursor.acked => {
                    self.write_cursor();
                    let cursor = &mut self.cursor;
                    let request = NextSignalsRequest {
                        stream_id: cursor.stream.clone(),
                        after_seq: u64::MAX,
                        ack_seq: cursor.mark.level(),
                        max: 1,
                        ..NextSignalsRequest::default()
                    };
                    cursor.acked = request.ack_seq;
                    peer.next_signals(&request, PATIENCE).await?;
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
        let pressure = matches!(told.event, Some(agent::signal::Event::Pressure(_)));
        let (mut signal, usage_bytes) = match decode(told, stream, unix_ms()) {
            Ok(decoded) => decoded,
            Err(error) => {
                if self.guest.is_some() && !pressure {
                    self.allowance.lifecycle(false).await;
                }
                return self.refuse(seq, &error);
            }
        };
        if self.guest.is_some() && !self.allowed(&container, pressure, seq).await {
            return true;
        }
        if let Event::Exited(exited) = &mut signal.event {
            exited.reconciled = seq <= self.before && self.history.lives.contains_key(&container);
        }
        if let Some((total, exited)) = facts {
            let told = self.told.entry(container).or_default();
            told.kills_total = total.unwrap_or(told.kills_total);
            told.exited |= exited;
        }
        self.cursor.mark.begin(seq);
        // There is one: no more are read than there are places.
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let ack = Ack::new(seq, self.cursor.done.clone(), place);
        let arrival = Arrival { signal, origin: Arc::clone(origin), usage_bytes, ack };
        self.counts.signals.one();
        self.arrivals.send(arrival).await.is_ok()
    }

    /// Dealt with: the agent is not to tell it again.
    fn refuse(&mut self, seq: u64, error: &dyn std::fmt::Display) -> bool {
        // The first says it; a guest could otherwise fill the log.
        if self.counts.refused.one() == 0 {
            tracing::warn!(source = self.source.name, %error, "signal refused; counting from now on");
        } else {
            tracing::debug!(source = self.source.name, %error, "signal refused");
        }
        self.cursor.mark.skip(seq);
        true
    }

    /// Whether a guest may send this one. What it sends too fast waits; pressure is dropped instead.
    async fn allowed(&mut self, container: &str, pressure: bool, seq: u64) -> bool {
        let new = !self.told.contains_key(container);
        if pressure {
            if !self.allowance.pressure() {
                self.counts.held_back.one();
                self.cursor.mark.skip(seq);
                return false;
            }
        } else {
            self.allowance.lifecycle(new).await;
        }
        if self.told.get(container).is_some_and(|told| told.lost) {
            return !self.refuse(seq, &"its container was told lost");
        }
        if new && self.room() == 0 {
            return !self.refuse(seq, &"it speaks for too many containers");
        }
        if new {
            self.told.insert(container.to_owned(), Told::default());
            self.counts.speaks_for(self.living());
        }
        true
    }

    fn most(&self) -> usize {
        if self.guest.is_some() { THERE_IN_GUEST } else { THERE }
    }

    fn living(&self) -> usize {
        self.told.values().filter(|told| !told.exited && !told.lost).count()
    }

    /// How many more containers of a guest can be remembered.
    fn room(&mut self) -> usize {
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, told| !told.exited);
        }
        let room = REMEMBERED.saturating_sub(self.told.len());
        room.min(allowance::CONTAINERS.saturating_sub(self.living()))
    }

    /// What is there at connect, and when something appeared: forgets what the agent no longer knows. `None`: it cannot say.
    async fn look_over(
        &mut self,
        peer: &Peer,
        stream: &Stream,
    ) -> Result<Option<(Vec<agent::Container>, u64)>, LinkError> {
        let (containers, as_of) = match peer.snapshot(self.most()).await {
            Ok(there) => there,
            Err(LinkError::Lacks { call, reason }) => {
                if self.words.may() {
                    let source = &self.source.name;
                    tracing::warn!(source, call, reason, "the agent lacks a call; doing without");
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let there: HashSet<&str> = containers.iter().map(|it| it.id.as_str()).collect();
        self.told.retain(|id, _| there.contains(id.as_str()));
        if self.asks_who_lives() {
            let mut room = if self.guest.is_some() { self.room() } else { usize::MAX };
            for container in containers.iter().filter(|it| it.exit.is_none()) {
                if room == 0 || self.told.contains_key(&container.id) {
                    continue;
                }
                room -= 1;
                let Ok(id) = ContainerId::try_from(container.id.clone()) else { continue };
                // What was killed before it is read on from here was told, or is told as lost.
                let told = if self.cursor.after > 0 { container.kills_total } else { container.kills_before };
                let told = Told { kills_total: told.unwrap_or(0), ..Told::default() };
                self.told.insert(container.id.clone(), told);
                if let Some(journal) = &self.history.journal {
                    let (source, kills_total) = (self.source.name.clone(), container.kills_total);
                    journal.lives(Lives { source, stream: stream.id.clone(), container: id, kills_total });
                }
            }
            self.counts.speaks_for(self.living());
        }
        Ok(Some((containers, as_of)))
    }

    /// Signals were lost: tells what the snapshot has beyond what was told. False: nobody takes signals any more.
    async fn make_good(
        &mut self,
        peer: &Peer,
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> Result<bool, LinkError> {
        let (containers, as_of) = match peer.snapshot(self.most()).await {
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
