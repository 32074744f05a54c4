//! Reconciliation after the router or the agent was down: compares the last known state with what
//! the agent and containerd report now.

use std::collections::HashMap;
use std::sync::Arc;

use coroner_proto::agent;

use super::agent::AgentSource;
use super::inferred::{ended_unseen, killed_unseen};
use super::recovered::LastKnown;
use super::signal_stream::SignalStream;
use crate::envelope::{Ack, Envelope, Origin, unix_ms};
use coroner_containerd::TaskState;
use coroner_core::signal::{ContainerId, Signal};

impl AgentSource {
    /// Reports kills and ends that were not seen. False: the signal channel is closed.
    pub(super) async fn reconcile(
        &mut self,
        LastKnown { running, other_stream }: LastKnown,
        containers: &[agent::Container],
        stream: &SignalStream,
        origin: &Arc<Origin>,
    ) -> bool {
        let mut unseen = Vec::new();
        for (id, kills) in &running {
            match containers.iter().find(|it| it.id == *id) {
                // The same stream reports by itself what happened in between.
                Some(container) if other_stream => {
                    if let (Some(before), Some(now)) = (*kills, container.kills_total)
                        && now > before
                        && !self
                            .send_concluded(killed_unseen(container, before, now, stream, unix_ms()), origin)
                            .await
                    {
                        return false;
                    }
                }
                None if other_stream => unseen.push(id),
                Some(_) => {}
                // The same stream reported its end and forgot it after the acknowledgement; only
                // the write to the journal is missing.
                None => {
                    if let (Some(journal), Ok(id)) =
                        (&self.recovered.journal, ContainerId::try_from(id.clone()))
                    {
                        journal.gone(id);
                    }
                }
            }
        }
        if unseen.is_empty() {
            return true;
        }
        let tasks = match self.recovered.containerd.clone() {
            // Without an answer the end is reported without a status.
            Some(address) => coroner_containerd::tasks(address).await.unwrap_or_default(),
            None => HashMap::new(),
        };
        for id in unseen {
            let status = match tasks.get(id) {
                // containerd still has the task: another source reports its end.
                Some(TaskState::Running) => continue,
                Some(TaskState::Stopped(status)) => Some(*status),
                None => None,
            };
            if !self.send_concluded(ended_unseen(id, status, stream, unix_ms()), origin).await {
                return false;
            }
        }
        true
    }

    async fn send_concluded(
        &mut self,
        concluded: Result<Signal, coroner_core::signal::SignalError>,
        origin: &Arc<Origin>,
    ) -> bool {
        // Ids from the journal are valid; those of a snapshot may not be.
        let Ok(signal) = concluded else { return true };
        tracing::info!(source = origin.source, container = %signal.target.container_id, kind = signal.event.kind(), "reconciled");
        let envelope = Envelope::new(signal, Arc::clone(origin), Ack::none());
        self.counts.signals.one();
        self.envelopes.send(envelope).await.is_ok()
    }
}
