//! After a time in which no router ran, or no agent: what was known to live, against what the agent and containerd know now.

use std::collections::HashMap;
use std::sync::Arc;

use coroner_proto::agent;

use super::agent::AgentSource;
use super::decode::{Stream, ended_unseen, killed_unseen};
use crate::arrival::{Ack, Arrival, Origin, unix_ms};
use crate::identity::{self, TaskState};
use crate::signal::{ContainerId, Signal};

/// What was known to live when the router, or the agent, was there last.
#[derive(Debug)]
pub(super) struct Earlier {
    /// Containers, and their counters of OOM kills.
    pub(super) lives: HashMap<String, Option<u64>>,
    /// It is another stream that answers now: what came between is not told again.
    pub(super) other_stream: bool,
}

impl AgentSource {
    /// Tells of kills and ends that nobody saw. False: nobody takes signals any more.
    pub(super) async fn reconcile(
        &mut self,
        Earlier { lives, other_stream }: Earlier,
        containers: &[agent::Container],
        stream: &Stream,
        origin: &Arc<Origin>,
    ) -> bool {
        let mut unseen = Vec::new();
        for (id, kills) in &lives {
            match containers.iter().find(|it| it.id == *id) {
                // The same stream tells by itself what came meanwhile.
                Some(container) if other_stream => {
                    if let (Some(before), Some(now)) = (*kills, container.kills_total)
                        && now > before
                        && !self
                            .hand_on_concluded(
                                killed_unseen(container, before, now, stream, unix_ms()),
                                origin,
                            )
                            .await
                    {
                        return false;
                    }
                }
                None if other_stream => unseen.push(id),
                Some(_) => {}
                // The same stream has told its end, and forgot it once that was dealt with: only the journal could not be written then.
                None => {
                    if let (Some(journal), Ok(id)) =
                        (&self.history.journal, ContainerId::try_from(id.clone()))
                    {
                        journal.gone(id);
                    }
                }
            }
        }
        if unseen.is_empty() {
            return true;
        }
        let tasks = match self.history.containerd.clone() {
            // Whoever waits for its end is told of it, without a status.
            Some(address) => identity::tasks(address).await.unwrap_or_default(),
            None => HashMap::new(),
        };
        for id in unseen {
            let status = match tasks.get(id) {
                // The agent does not see its cgroup, and containerd does: somebody else's to tell.
                Some(TaskState::Runs) => continue,
                Some(TaskState::Stopped(status)) => Some(*status),
                None => None,
            };
            if !self.hand_on_concluded(ended_unseen(id, status, stream, unix_ms()), origin).await {
                return false;
            }
        }
        true
    }

    async fn hand_on_concluded(
        &mut self,
        concluded: Result<Signal, crate::signal::SignalError>,
        origin: &Arc<Origin>,
    ) -> bool {
        // Ids from the journal are ids; a container's of a snapshot may not be.
        let Ok(signal) = concluded else { return true };
        tracing::info!(source = origin.source, container = %signal.target.container_id, kind = signal.event.kind(), "reconciled");
        let arrival = Arrival {
            signal,
            origin: Arc::clone(origin),
            usage_bytes: None,
            memory_limit: None,
            attributes: Vec::new(),
            ack: Ack::nobody(),
        };
        self.counts.signals.one();
        self.arrivals.send(arrival).await.is_ok()
    }
}
