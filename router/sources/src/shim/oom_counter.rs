//! The OOM counters of a source's containers: where they are, when they are polled, and what
//! follows when they are gone.

use std::collections::HashMap;

use coroner_cgroup::{CounterError, Version};
use tokio::time::Instant;

use super::container::{Announcement, Vanished, WrappedContainer};
use super::kills_below::KillsBelow;
use super::{REPORTED_WITHIN, ShimSource};
use coroner_containerd::TaskState;
use coroner_containerd::holds::{Process, ProcessEnd, Reporter};
use coroner_core::signal::{ContainerId, Signal};
use coroner_journal::Ack;

/// Queries without an answer, after which one more is sent; then the end is reported without a
/// status.
const UNANSWERED: u32 = 4;
/// Reads of a pod's counters, of which two in a row must agree.
const READS: usize = 4;

impl ShimSource {
    pub(super) fn cgroup_of(&self, pid: u32) -> Option<String> {
        self.watch.as_ref()?.hierarchy().cgroup_of(pid)
    }

    /// Counts a container's kills from its cgroup, where it has one of its own.
    pub(super) fn watch_counter(&mut self, id: &ContainerId, cgroup: Option<String>) {
        let (Some(cgroup), Some(watch)) = (cgroup, &mut self.watch) else { return };
        if let Err(error) = watch.add(id, &cgroup) {
            // The counter is still read at the exit.
            tracing::debug!(container = %id, cgroup, %error, "no OOM notices");
        }
        if let Some(container) = self.containers.get_mut(id) {
            // Kills are counted from the container's start.
            let reported = container.kills.get_or_insert_default().total;
            let unreported = watch.hierarchy().kills(&cgroup).map(|it| it.total.saturating_sub(reported));
            self.pods.add(watch.hierarchy(), id, &cgroup, unreported.ok());
            container.cgroup = Some(cgroup);
        }
    }

    /// Reads the counter and returns a kill if it rose. `None` also where it cannot be read.
    pub(super) fn read_counter(&mut self, id: &ContainerId) -> Option<Signal> {
        self.poll_counter(id)?.ok()?
    }

    /// Reads the counter; a kill if it rose. `None`: this source does not count its kills.
    fn poll_counter(&mut self, id: &ContainerId) -> Option<Result<Option<Signal>, CounterError>> {
        let watch = self.watch.as_ref()?;
        let container = self.containers.get_mut(id)?;
        let cgroup = container.cgroup.clone()?;
        let before = container.kills.map_or(0, |it| it.total);
        match watch.hierarchy().kills(&cgroup) {
            Ok(now) if now.total > before => {
                let limit = watch.hierarchy().memory(&cgroup).limit.or(container.memory_limit);
                container.poll_schedule.found();
                container.kills_unknown = None;
                // Its shim announces this kill, before or after, and no other one below.
                if watch.hierarchy().version() == Version::V1 {
                    let announced = container.unconfirmed.take().is_some_and(|it| !it.is_counted);
                    let unannounced = (now.total - before).saturating_sub(u64::from(announced));
                    container.counted_first.add(unannounced, Instant::now());
                    container.below = KillsBelow::read(watch.hierarchy(), &cgroup);
                }
                self.pods.reported(&cgroup, now.total - before);
                Some(Ok(Some(container.kill(&self.source.name, now, limit))))
            }
            Ok(_) => {
                container.kills_unknown = None;
                Some(Ok(None))
            }
            Err(error) => {
                self.gone(id);
                Some(Err(error))
            }
        }
    }

    /// Reads the counter a last time, before an exit. Where the cgroup is gone, the pod's counter
    /// is the witness; without it, the number of kills is unknown. `status`: that of the exit.
    pub(super) fn read_final_counter(&mut self, id: &ContainerId, status: Option<u32>) -> Vec<Signal> {
        match self.poll_counter(id) {
            Some(Ok(kill)) => kill.or_else(|| self.confirm(id)).into_iter().collect(),
            Some(Err(error)) => {
                let announced = self.confirm(id);
                let mut kills = self.count_in_pod(id, status, &error);
                kills.extend(announced);
                kills
            }
            None => Vec::new(),
        }
    }

    /// The kill of an announcement that the container's own counter does not show. On cgroup v1 the
    /// counters below it may show it. An announcement counts unless they show that no process was
    /// killed: where the cgroup is gone, they show nothing.
    fn confirm(&mut self, id: &ContainerId) -> Option<Signal> {
        let hierarchy = self.watch.as_ref()?.hierarchy();
        let container = self.containers.get_mut(id)?;
        container.unconfirmed.as_ref()?;
        let cgroup = container.cgroup.clone()?;
        if hierarchy.kills(&cgroup).is_err() {
            return container.killed_unseen(&self.source.name);
        }
        container.killed_below(&self.source.name, KillsBelow::read(hierarchy, &cgroup))
    }

    /// The kills that only the counter of its pod shows, after those of the pod's other containers.
    fn count_in_pod(&mut self, id: &ContainerId, status: Option<u32>, error: &CounterError) -> Vec<Signal> {
        let Some(container) = self.containers.get(id) else { return Vec::new() };
        // A repeated report: what the pod counted since is another container's.
        if container.processes.is_over() {
            return Vec::new();
        }
        // The runtime's failure to create a container is counted in the pod too. A sandbox, and an
        // end with status 0, are not evidence enough.
        let plausible = status != Some(0) && container.sandbox() != Some(id.as_str());
        let cgroup = container.cgroup.clone().unwrap_or_default();
        let (mut kills, unreported) = self.count_others(id, &cgroup);
        let Some(container) = self.containers.get_mut(id) else { return kills };
        match unreported {
            Some(0) => {}
            Some(added) if plausible => {
                self.pods.reported(&cgroup, added);
                // The kill that its shim announced.
                if !container.announced {
                    kills.push(container.killed_in_pod(&self.source.name, added));
                }
            }
            _ if container.announced || container.kills.is_some_and(|it| it.total > 0) => {}
            _ => container.kills_unknown = Some(error.to_string()),
        }
        kills
    }

    /// Reads the counters of the pod's other containers, and then how many kills of the pod are
    /// none of theirs. Repeated while kills go on.
    fn count_others(&mut self, id: &ContainerId, cgroup: &str) -> (Vec<Signal>, Option<u64>) {
        let siblings = self.pods.siblings(id, cgroup);
        let (mut kills, mut last) = (Vec::new(), None);
        for _ in 0..READS {
            kills.extend(siblings.iter().filter_map(|it| self.read_counter(it)));
            let hierarchy = self.watch.as_ref().map(super::watch::Watch::hierarchy);
            let now = hierarchy.and_then(|it| self.pods.unreported(it, id, cgroup));
            if siblings.is_empty() || now.is_none() || now == last {
                return (kills, now);
            }
            last = now;
        }
        (kills, None)
    }

    /// Records that a container's cgroup is gone, and with it the counter. If its end was not
    /// reported, containerd is queried later.
    pub(super) fn gone(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.poll_schedule.end();
        if !container.processes.is_over() && container.vanished.is_none() {
            self.query_later(id, 0);
        }
    }

    /// Schedules a query to containerd for a container's end, unless the shim reports it before.
    /// `unanswered` is the number of queries without an answer so far.
    fn query_later(&mut self, id: &ContainerId, unanswered: u32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let at = Instant::now() + REPORTED_WITHIN;
        container.vanished = Some(Vanished { at, unanswered });
        self.due.insert((at, id.clone()));
    }

    /// The shim announced an OOM. Where kills are counted, the counter is polled instead, at once
    /// and shortly after.
    pub(super) fn announced(&mut self, id: &ContainerId) -> Option<Signal> {
        let name = self.source.name.clone();
        let kill = self.read_counter(id);
        let counted_first = self.containers.get_mut(id).map(|it| &mut it.counted_first);
        let is_counted = counted_first.is_some_and(|it| it.take_one(Instant::now()));
        if kill.is_some() {
            return kill;
        }
        let hierarchy = self.watch.as_ref().map(super::watch::Watch::hierarchy);
        let container = self.containers.get_mut(id)?;
        let readable =
            container.cgroup.as_ref().zip(hierarchy).is_some_and(|(it, all)| all.kills(it).is_ok());
        if readable {
            if let (Some(cgroup), Some(hierarchy)) = (&container.cgroup, hierarchy)
                && hierarchy.version() == Version::V1
            {
                let below = KillsBelow::read(hierarchy, cgroup);
                container.unconfirmed = Some(Announcement { below, is_counted });
            }
            self.start_polling(id, false);
            return self.confirm(id);
        }
        let was_reported = container.announced || container.kills.is_some_and(|kills| kills.total > 0);
        (!was_reported).then(|| container.announced(&name))
    }

    /// Starts the poll schedule; `found`: the counter was read, and has the kill.
    fn start_polling(&mut self, id: &ContainerId, found: bool) {
        if let (Some(container), Some(watch)) = (self.containers.get_mut(id), &self.watch) {
            container.poll_schedule.begin(watch.hierarchy().version(), found, Instant::now());
        }
        self.schedule(id);
    }

    /// Schedules the next poll of the counter, if there is one.
    fn schedule(&mut self, id: &ContainerId) {
        let (Some(container), Some(watch)) = (self.containers.get_mut(id), &self.watch) else { return };
        if let Some(at) = container.poll_schedule.at.take() {
            self.due.remove(&(at, id.clone()));
        }
        if let Some(gap) = container.poll_schedule.gap() {
            let at = Instant::now() + gap;
            container.poll_schedule.at = Some(at);
            self.due.insert((at, id.clone()));
            watch.wake_in(gap);
        } else {
            // The counters were read for as long as a kill takes, and show none.
            container.unconfirmed = None;
        }
    }

    pub(super) async fn noticed(&mut self, noticed: Vec<ContainerId>) -> bool {
        for id in noticed {
            let kill = self.read_counter(&id);
            self.start_polling(&id, kill.is_some());
            if let Some(kill) = kill
                && !self.send_signal(kill, Ack::none()).await
            {
                return false;
            }
        }
        self.poll_due().await
    }

    /// Polls the counters that are due, and queries containerd if a container's end is due.
    pub(super) async fn poll_due(&mut self) -> bool {
        let now = Instant::now();
        let mut vanished = false;
        while let Some((at, id)) = self.due.first().cloned().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id.clone()));
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if container.vanished.is_some_and(|it| it.at <= now) {
                vanished = true;
                continue;
            }
            let kill = self.read_counter(&id).or_else(|| self.confirm(&id));
            if let Some(container) = self.containers.get_mut(&id) {
                container.poll_schedule.polled();
            }
            self.schedule(&id);
            if let Some(kill) = kill
                && !self.send_signal(kill, Ack::none()).await
            {
                return false;
            }
        }
        if vanished && self.listing.is_empty() {
            let address = self.recovered.containerd.clone();
            self.listing.spawn(async move {
                match address {
                    Some(address) => coroner_containerd::tasks(address).await,
                    None => Some(HashMap::new()),
                }
            });
        }
        true
    }

    /// Reports the ends of containers from containerd's tasks, where the shim reported none.
    /// `None`: containerd did not answer.
    pub(super) async fn listed(&mut self, tasks: Option<HashMap<String, TaskState>>) -> bool {
        let now = Instant::now();
        let over = |container: &WrappedContainer| container.vanished.is_some_and(|it| it.at <= now);
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, it)| over(it)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            let unanswered = container.vanished.take().map_or(0, |it| it.unanswered);
            let status = match tasks.as_ref().map(|tasks| tasks.get(id.as_str())) {
                Some(Some(TaskState::Stopped(status))) => Some(*status),
                Some(Some(TaskState::Running)) => {
                    // containerd has not received the end either.
                    self.query_later(&id, 0);
                    continue;
                }
                None if unanswered < UNANSWERED => {
                    self.query_later(&id, unanswered + 1);
                    continue;
                }
                Some(None) | None => None,
            };
            for kill in self.read_final_counter(&id, status) {
                if !self.send_signal(kill, Ack::none()).await {
                    return false;
                }
            }
            let Some(container) = self.containers.get_mut(&id) else { continue };
            let process = Process { exec: None, pid: container.processes.init_pid() };
            let ProcessEnd { process, is_first, .. } =
                container.processes.ended(process, Reporter::Containerd);
            if container.started && is_first {
                tracing::info!(container = %id, ?status, "exit not reported by shim; inferred from its task state");
                let mut exit = container.exit(&self.source.name, &process, status, None, true);
                let because = "its shim could not tell its end";
                exit.attributes.push(("unknown-because".to_owned(), because.to_owned()));
                if !self.send_signal(exit, Ack::none()).await {
                    return false;
                }
            }
            self.forget(&id);
        }
        true
    }

    /// Recovers the containers of an earlier run of this router, and reports their kills and ends
    /// since then.
    pub(super) async fn recover(&mut self) -> bool {
        for lives in std::mem::take(&mut self.recovered.shims) {
            let Some(known) = lives.shim else { continue };
            let id = lives.container;
            let container = self.container(&known.namespace, &id);
            container.read(&known.bundle);
            container.started = true;
            container.processes.created(Process { exec: None, pid: known.pid });
            container.processes.started(Process { exec: None, pid: known.pid });
            if let Some(total) = lives.kills_total {
                container.kills = Some(coroner_cgroup::Kills { total, ..coroner_cgroup::Kills::default() });
            }
            match known.cgroup {
                Some(cgroup) => {
                    self.watch_counter(&id, Some(cgroup.clone()));
                    match self.poll_counter(&id) {
                        Some(Ok(Some(kill))) => {
                            if !self.send_signal(kill, Ack::none()).await {
                                return false;
                            }
                        }
                        // Kills that its pod counted while no router ran may be older ones.
                        Some(Err(_)) => self.pods.remove(&id, &cgroup),
                        Some(Ok(None)) | None => {}
                    }
                }
                // No cgroup shows whether it still runs: containerd is queried once.
                None => self.gone(&id),
            }
        }
        if let Some(watch) = &self.watch {
            self.pods.rebase(watch.hierarchy());
        }
        self.counts.set_containers(self.containers.len());
        true
    }
}

#[cfg(test)]
#[path = "oom_counter_tests.rs"]
mod tests;
