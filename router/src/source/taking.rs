//! Takes in what an agent tells: decodes it, bounds it where it is a guest's, and hands it on.

use std::sync::Arc;

use coroner_proto::agent;

use super::agent::AgentSource;
use super::calls::LinkError;
use super::decode::{Stream, decode};
use super::living::Told;
use super::peer::Peer;
use crate::arrival::{Ack, Arrival, Origin, unix_ms};
use crate::signal::{Event, OomKill};

impl AgentSource {
    /// False: nobody takes signals any more.
    pub(super) async fn hand_on(
        &mut self,
        told: agent::Signal,
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> bool {
        self.take_in(told, false, stream, origin).await
    }

    /// `made_good`: out of a snapshot, where a kill and the exit after it have one sequence number.
    async fn take_in(
        &mut self,
        told: agent::Signal,
        made_good: bool,
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> bool {
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
        if let (true, Event::OomKill(OomKill { total: Some(total), .. })) = (made_good, &signal.event) {
            signal.id = stream.kills(&signal.target.container_id, *total);
        }
        if let Event::Exited(exited) = &mut signal.event {
            exited.reconciled = seq <= self.before && self.history.lives.contains_key(&container);
        }
        if let Some((total, exited)) = facts {
            let told = self.told.entry(container).or_default();
            told.lived = true;
            told.kills_total = total.or(told.kills_total);
            told.exited |= exited;
        }
        self.cursor.mark.begin(seq);
        // There is one: no more are read than there are places.
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let ack = Ack::new(seq, self.cursor.done.clone(), place);
        let (origin, attributes) = (Arc::clone(origin), Vec::new());
        let arrival = Arrival { signal, origin, usage_bytes, memory_limit: None, attributes, ack };
        self.counts.signals.one();
        self.arrivals.send(arrival).await.is_ok()
    }

    /// Dealt with: the agent is not to tell it again.
    pub(super) fn refuse(&mut self, seq: u64, error: &dyn std::fmt::Display) -> bool {
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
    pub(super) async fn allowed(&mut self, container: &str, pressure: bool, seq: u64) -> bool {
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

    /// Signals were lost: tells what the snapshot has beyond what was told. False: nobody takes signals any more.
    pub(super) async fn make_good(
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
                self.told.get(&container.id).map_or((None, false), |told| (told.kills_total, told.exited));
            // Kills from before the agent came are no signals.
            let kills_total = told.max(container.kills_before).unwrap_or(0);
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
                if !self.take_in(signal, true, stream, origin).await {
                    return Ok(false);
                }
            }
        }
        self.cursor.after = self.cursor.after.max(as_of);
        Ok(true)
    }
}
