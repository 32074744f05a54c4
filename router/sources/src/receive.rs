//! Receives an agent's signals: decodes them, applies a guest's limits, and sends them to the
//! intake.

use std::sync::Arc;

use coroner_proto::agent;

use super::agent::AgentSource;
use super::agent_client::conn::AgentConn;
use super::agent_client::rpc::LinkError;
use super::decode::decode;
use super::inventory::snapshot_limit;
use super::signal_stream::SignalStream;
use crate::envelope::{Ack, Envelope, Origin, unix_ms};
use coroner_core::signal::{Event, OomKilled};

impl AgentSource {
    /// Receives one signal. False: the signal channel is closed.
    pub(super) async fn receive(
        &mut self,
        message: agent::Signal,
        stream: &SignalStream,
        origin: &Arc<Origin>,
    ) -> bool {
        self.receive_signal(message, false, stream, origin).await
    }

    /// `from_snapshot`: a kill and the exit after it share one sequence number.
    async fn receive_signal(
        &mut self,
        message: agent::Signal,
        from_snapshot: bool,
        stream: &SignalStream,
        origin: &Arc<Origin>,
    ) -> bool {
        let seq = message.seq;
        let container = message.container_id.clone();
        let facts = match &message.event {
            Some(agent::signal::Event::OomKill(kill)) => Some((Some(kill.total), false)),
            Some(agent::signal::Event::Exited(_)) if message.exec_id.is_none() => Some((None, true)),
            _ => None,
        };
        let pressure = matches!(message.event, Some(agent::signal::Event::Pressure(_)));
        let (mut signal, usage_bytes) = match decode(message, stream, unix_ms()) {
            Ok(decoded) => decoded,
            Err(error) => {
                if self.guest.is_some() && !pressure {
                    self.rate_limits.lifecycle(false).await;
                }
                return self.refuse(seq, &error);
            }
        };
        if self.guest.is_some() && !self.allowed(&container, pressure, seq).await {
            return true;
        }
        if let (true, Event::OomKill(OomKilled { total: Some(total), .. })) = (from_snapshot, &signal.event) {
            signal.id = stream.kills(&signal.target.container_id, *total);
        }
        if let Event::Exited(exited) = &mut signal.event {
            exited.reconciled = seq <= self.before && self.recovered.running.contains_key(&container);
        }
        if let Some((total, exited)) = facts {
            let tracked = self.inventory.entry(container);
            tracked.lived = true;
            tracked.kills_total = total.or(tracked.kills_total);
            tracked.exited |= exited;
        }
        self.cursor.watermark.begin(seq);
        // A permit is available: no more signals are read than there are permits.
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let ack = Ack::new(seq, self.cursor.done.clone(), permit);
        if let Some(evidence) = &self.evidence {
            evidence.expect(&signal, seq);
        }
        let envelope = Envelope { usage_bytes, ..Envelope::new(signal, Arc::clone(origin), ack) };
        self.counts.signals.one();
        self.envelopes.send(envelope).await.is_ok()
    }

    /// Acknowledges a refused signal, so that the agent does not send it again.
    pub(super) fn refuse(&mut self, seq: u64, error: &dyn std::fmt::Display) -> bool {
        // Only the first refusal is a warning: a guest could otherwise fill the log.
        if self.counts.refused.one() == 0 {
            tracing::warn!(source = self.source.name, %error, "signal refused; further ones are only counted");
        } else {
            tracing::debug!(source = self.source.name, %error, "signal refused");
        }
        self.cursor.watermark.skip(seq);
        true
    }

    /// Whether a guest may send this signal. Too fast a lifecycle signal waits; pressure is
    /// dropped.
    pub(super) async fn allowed(&mut self, container: &str, pressure: bool, seq: u64) -> bool {
        let new = self.inventory.get(container).is_none();
        if pressure {
            if !self.rate_limits.pressure() {
                self.counts.held_back.one();
                self.cursor.watermark.skip(seq);
                return false;
            }
        } else {
            self.rate_limits.lifecycle(new).await;
        }
        if self.inventory.get(container).is_some_and(|it| it.lost) {
            return !self.refuse(seq, &"guest-lost was reported for its container");
        }
        if new && self.inventory.room() == 0 {
            return !self.refuse(seq, &"too many containers for one guest");
        }
        if new {
            self.inventory.entry(container.to_owned());
            self.counts.set_containers(self.inventory.running_count());
        }
        true
    }

    /// Signals were lost: reports what the snapshot has beyond what was reported. False: the signal
    /// channel is closed.
    pub(super) async fn fill_gap(
        &mut self,
        conn: &AgentConn,
        stream: &SignalStream,
        origin: &Arc<Origin>,
    ) -> Result<bool, LinkError> {
        let (containers, as_of) = match conn.snapshot(snapshot_limit(self.guest.is_some())).await {
            Err(LinkError::Lacks { .. }) => return Ok(true),
            other => other?,
        };
        for container in containers {
            let (reported, exited) =
                self.inventory.get(&container.id).map_or((None, false), |it| (it.kills_total, it.exited));
            // Kills before the agent's start are not signals.
            let kills_total = reported.max(container.kills_before).unwrap_or(0);
            let mut missing = Vec::new();
            if let Some(total) = container.kills_total.filter(|total| *total > kills_total) {
                missing.push(agent::signal::Event::OomKill(agent::OomKill {
                    total,
                    added: total - kills_total,
                    cgroup: container.cgroup.clone(),
                    limit_bytes: container.limit_bytes,
                    usage_bytes: container.usage_bytes,
                    ..agent::OomKill::default()
                }));
            }
            if let (Some(exit), false) = (container.exit.into_option(), exited) {
                missing.push(agent::signal::Event::Exited(exit));
            }
            for event in missing {
                let signal = agent::Signal {
                    seq: as_of,
                    container_id: container.id.clone(),
                    event: Some(event),
                    ..agent::Signal::default()
                };
                if !self.receive_signal(signal, true, stream, origin).await {
                    return Ok(false);
                }
            }
        }
        self.cursor.after = self.cursor.after.max(as_of);
        Ok(true)
    }
}
