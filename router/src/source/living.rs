//! Which containers of an agent live, as far as it told: so that their ends can be told if it is gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coroner_proto::agent;
use tokio::time::Instant;

use super::agent::AgentSource;
use super::allowance;
use super::calls::LinkError;
use super::decode::{Stream, gone};
use super::peer::Peer;
use crate::arrival::{Ack, Arrival, Origin, unix_ms};
use crate::journal::Lives;
use crate::signal::ContainerId;

/// Containers remembered of one guest, those that ended included.
const REMEMBERED: usize = 2 * allowance::CONTAINERS;
/// Containers of a snapshot: more than any agent has, on a node or in a guest.
const THERE: usize = 16 << 10;
const THERE_IN_GUEST: usize = 2 * REMEMBERED;

/// What was told of one container in this stream.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The counter of its OOM kills; none until it was told.
    pub(super) kills_total: Option<u64>,
    /// It was seen to live, or a kill or its exit was told. Pressure is told of one that has ended too.
    pub(super) lived: bool,
    pub(super) exited: bool,
    /// Its guest was lost: nothing that is said of it counts any more.
    pub(super) lost: bool,
}

impl Told {
    /// Whether its end is still to be told.
    fn lives(&self) -> bool {
        self.lived && !self.exited && !self.lost
    }
}

impl AgentSource {
    /// Containers appeared: who lives is known within a fifth of a second, so that the end of each can be told if the guest is gone. Until then signals are
    /// read on: a kill waits for no snapshot.
    pub(super) async fn look_for_new(&mut self, peer: &Peer, stream: &Stream) -> Result<(), LinkError> {
        if !self.cursor.unlooked || !self.until_look().is_zero() {
            return Ok(());
        }
        self.cursor.unlooked = false;
        self.cursor.looked = Some(Instant::now());
        self.look_over(peer, stream).await.map(drop)
    }

    /// Whether it must be known who lives: to tell their ends when the machine is gone, and after a time in which no router ran.
    pub(super) fn asks_who_lives(&self) -> bool {
        self.machine.is_some() || self.history.journal.is_some()
    }

    /// Those that live, and their counters of OOM kills.
    pub(super) fn lives(&self) -> HashMap<String, Option<u64>> {
        let living = self.told.iter().filter(|(_, told)| told.lives());
        living.map(|(id, told)| (id.clone(), told.kills_total)).collect()
    }

    pub(super) fn most(&self) -> usize {
        if self.guest.is_some() { THERE_IN_GUEST } else { THERE }
    }

    /// Those that are not known to have ended.
    pub(super) fn living(&self) -> usize {
        self.told.values().filter(|told| !told.exited && !told.lost).count()
    }

    /// How many more containers of a guest can be remembered.
    pub(super) fn room(&mut self) -> usize {
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, told| !told.exited);
        }
        let room = REMEMBERED.saturating_sub(self.told.len());
        room.min(allowance::CONTAINERS.saturating_sub(self.living()))
    }

    /// What is there at connect, and when something appeared: forgets what the agent no longer knows. `None`: it cannot say.
    pub(super) async fn look_over(
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
                let known = self.told.get(&container.id);
                if known.is_some_and(|told| told.lived) || known.is_none() && room == 0 {
                    continue;
                }
                room -= usize::from(known.is_none());
                let Ok(id) = ContainerId::try_from(container.id.clone()) else { continue };
                // What was killed before it is read on from here was told, or is told as lost.
                let told = if self.cursor.after > 0 { container.kills_total } else { container.kills_before };
                let told = Told { kills_total: told, lived: true, ..Told::default() };
                self.told.insert(container.id.clone(), told);
                if let Some(journal) = &self.history.journal {
                    let (source, kills_total) = (self.source.name.clone(), container.kills_total);
                    journal.lives(Lives {
                        source,
                        stream: stream.id.clone(),
                        container: id,
                        kills_total,
                        shim: None,
                    });
                }
            }
            self.counts.speaks_for(self.living());
        }
        Ok(Some((containers, as_of)))
    }

    /// Tells of every container that still lived that its guest is gone.
    pub(super) async fn lost(&mut self, reason: &str) {
        for (id, kills_total) in self.earlier.take().map(|earlier| earlier.lives).into_iter().flatten() {
            self.told.entry(id).or_insert(Told { kills_total, lived: true, ..Told::default() });
        }
        let mut ids: Vec<String> =
            self.told.iter().filter(|(_, told)| told.lives()).map(|(id, _)| id.clone()).collect();
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
            shim: false,
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
}
