//! The source `agent`: reads a coroner-agent's state by cursor, and tells it what has been dealt with.

use std::collections::HashMap;
use std::sync::Arc;

use coroner_proto::agent::HelloRequest;
use coroner_proto::guard::Refused;
use coroner_proto::transport;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::allowance::Allowance;
use super::backoff::Backoff;
use super::calls::{LinkError, PATIENCE};
use super::cursor::{Cursor, UNDER_WAY};
use super::decode::Stream;
use super::greeting::greeting;
use super::living::Told;
use super::machine::{Machine, rest};
use super::orders::{Order, Orders};
use super::past::History;
use super::peer::{BATCH, Peer};
use super::reconcile::Earlier;
use super::settlers::{Settler, Settlers};
use super::words::Words;
use crate::arrival::{Arrival, Guest, Origin};
use crate::config::Source;
use crate::counts::SourceCounts;

/// Signals of a guest that may be on their way at once. All of them wait in line for one containerd: the more of one guest's are in it, the longer the others' wait.
const UNDER_WAY_OF_GUEST: usize = 512;

/// Follows one agent through its restarts.
#[derive(Debug)]
pub struct AgentSource {
    pub(super) source: Source,
    pub(super) node: String,
    pub(super) arrivals: mpsc::Sender<Arrival>,
    pub(super) counts: Arc<SourceCounts>,
    /// Who speaks, where it is not trusted; what it may send, and whether its machine is there.
    pub(super) guest: Option<Arc<Guest>>,
    pub(super) allowance: Allowance,
    pub(super) words: Words,
    pub(super) machine: Option<Machine>,
    /// What was told of each container in this stream, for the time when something was lost.
    pub(super) told: HashMap<String, Told>,
    pub(super) cursor: Cursor,
    /// For signals that are not dealt with yet.
    pub(super) places: Arc<Semaphore>,
    pub(super) is_lost: bool,
    pub(super) history: History,
    /// What is still to be held against the agent's next snapshot.
    pub(super) earlier: Option<Earlier>,
    settlers: Settlers,
    /// Where it is one of a guest and its link is up.
    settler: Option<Settler>,
    /// The agent has not answered this run of the router yet.
    first: bool,
    /// Exits up to here came before this run of the router: it knows that their containers lived.
    pub(super) before: u64,
}

impl AgentSource {
    /// A source that has not connected yet. `guest`: who speaks, where it is not trusted. `history`: what an earlier run of the router knew of it. `settlers`: where it is found when it is to be asked.
    pub fn new(
        source: Source,
        node: String,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<SourceCounts>,
        guest: Option<Arc<Guest>>,
        mut history: History,
        settlers: Settlers,
    ) -> Self {
        let mut machine = source.machine.as_ref().map(Machine::new);
        let cursor = history.cursor.take().map_or_else(|| Cursor::new(String::new()), Cursor::from);
        let lived = |(id, kills): (&String, &Option<u64>)| {
            (id.clone(), Told { kills_total: *kills, ..Told::default() })
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
            earlier: Some(Earlier { lives: history.lives.clone(), other_stream: false }),
            history,
            settlers,
            settler: None,
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
            self.settler = None;
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

    pub(super) fn stream(&self) -> Stream {
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
            shim: false,
        });
        if agent.stream != self.cursor.stream {
            // Begun anew, it knows nothing of what ended before.
            let lives = self.earlier.take().map_or_else(|| self.lives(), |earlier| earlier.lives);
            self.earlier = Some(Earlier { lives, other_stream: true });
            self.cursor = Cursor::new(agent.stream.clone());
            self.told.clear();
        }
        let stream = self.stream();
        if let Some((containers, as_of)) = self.look_over(peer, &stream).await? {
            if std::mem::replace(&mut self.first, false) {
                self.before = as_of;
            }
            if let Some(earlier) = self.earlier.take()
                && !self.reconcile(earlier, &containers, &stream, &origin).await
            {
                return Ok(());
            }
        }
        *read = Some(Instant::now());
        self.came_up();
        let guest = self.source.guest.as_deref();
        self.settler = guest.map(|guest| self.settlers.add(guest, peer.clone(), self.cursor.after));
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
        while self.read_on(peer, &stream, &origin).await? {}
        Ok(())
    }

    fn came_up(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.up();
        }
        self.is_lost = false;
        self.counts.lost_for_good(false);
        self.counts.links.one();
        self.counts.connected(true);
        self.counts.troubled(None);
    }

    /// Takes in one answer, or waits for room. False: nobody takes signals any more.
    async fn read_on(
        &mut self,
        peer: &Peer,
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> Result<bool, LinkError> {
        self.collect_acks();
        if self.places.available_permits() < BATCH as usize {
            // Nothing is read until something is dealt with: the agent keeps it.
            tokio::select! {
                room = self.places.acquire_many(BATCH) => drop(room),
                Some(seq) = self.cursor.acks.recv() => self.cursor.mark.done(seq),
            }
            return Ok(true);
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
            if !self.hand_on(signal, stream, origin).await {
                return Ok(false);
            }
        }
        if let Some(settler) = &self.settler {
            settler.read(self.cursor.after);
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
            if !self.make_good(peer, stream, origin).await? {
                return Ok(false);
            }
        }
        if self.asks_who_lives() && answer.appeared != self.cursor.appeared {
            (self.cursor.appeared, self.cursor.unlooked) = (answer.appeared, true);
        }
        self.look_for_new(peer, stream).await?;
        Ok(true)
    }
}
