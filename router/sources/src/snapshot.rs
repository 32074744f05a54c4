//! Snapshots of an agent's containers: taken at connect, and when containers appeared.

use coroner_proto::agent;
use tokio::time::Instant;

use super::agent::AgentSource;
use super::agent_client::conn::AgentConn;
use super::agent_client::rpc::LinkError;
use super::inventory::snapshot_limit;
use super::signal_stream::SignalStream;
use coroner_core::signal::ContainerId;
use coroner_journal::RunningContainer;

impl AgentSource {
    /// Takes a snapshot for new containers within 200 ms, so that their loss can be reported when
    /// the guest is gone. Signals are read meanwhile: a kill does not wait for a snapshot.
    pub(super) async fn snapshot_new(
        &mut self,
        conn: &AgentConn,
        stream: &SignalStream,
    ) -> Result<(), LinkError> {
        if !self.cursor.snapshot_due || !self.cursor.until_snapshot().is_zero() {
            return Ok(());
        }
        self.cursor.snapshot_due = false;
        self.cursor.last_snapshot = Some(Instant::now());
        self.take_snapshot(conn, stream).await.map(drop)
    }

    /// Takes a snapshot at connect and when containers appeared; drops those that the agent no
    /// longer knows. `None`: the agent lacks the call.
    pub(super) async fn take_snapshot(
        &mut self,
        conn: &AgentConn,
        stream: &SignalStream,
    ) -> Result<Option<(Vec<agent::Container>, u64)>, LinkError> {
        let (containers, as_of) = match conn.snapshot(snapshot_limit(self.guest.is_some())).await {
            Ok(there) => there,
            Err(LinkError::Lacks { call, reason }) => {
                if self.log_limiter.allow() {
                    let source = &self.source.name;
                    tracing::warn!(source, call, reason, "the agent lacks a call; continuing without it");
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.inventory.retain(&containers);
        if self.tracks_inventory() {
            let mut room = if self.guest.is_some() { self.inventory.room() } else { usize::MAX };
            for container in containers.iter().filter(|it| it.exit.is_none()) {
                let known = self.inventory.get(&container.id);
                if known.is_some_and(|it| it.lived) || known.is_none() && room == 0 {
                    continue;
                }
                room -= usize::from(known.is_none());
                let Ok(id) = ContainerId::try_from(container.id.clone()) else { continue };
                // Kills before the resumed position were reported, or will be reported as lost.
                let kills_total =
                    if self.cursor.after > 0 { container.kills_total } else { container.kills_before };
                self.inventory.add(container.id.clone(), kills_total);
                if let Some(journal) = &self.recovered.journal {
                    let (source, kills_total) = (self.source.name.clone(), container.kills_total);
                    journal.running(RunningContainer {
                        source,
                        stream: stream.id.clone(),
                        container: id,
                        kills_total,
                        shim: None,
                    });
                }
            }
            self.counts.set_containers(self.inventory.running_count());
        }
        Ok(Some((containers, as_of)))
    }
}
