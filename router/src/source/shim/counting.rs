//! The counters of a source's containers: where they are, when they are looked at, and what follows when they are gone.

use std::collections::HashMap;

use tokio::time::Instant;

use super::container::{Container, Vanished};
use super::event::Process;
use super::{ShimSource, TOLD_WITHIN};
use crate::arrival::Ack;
use crate::identity::{self, TaskState};
use crate::signal::{ContainerId, Signal};

/// containerd that does not answer so often is asked once more; then an end is told without a status.
const UNANSWERED: u32 = 4;

impl ShimSource {
    pub(super) fn cgroup_of(&self, pid: u32) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.watch.as_ref()?.hierarchy().membership(&text).map(str::to_owned)
    }

    /// Where a counter can be read, it is what counts.
    pub(super) fn arm(&mut self, id: &ContainerId, cgroup: Option<String>) {
        let (Some(cgroup), Some(watch)) = (cgroup, &mut self.watch) else { return };
        if let Err(error) = watch.arm(id, &cgroup) {
            // It is still read at the exit.
            tracing::debug!(container = %id, cgroup, %error, "no OOM notices");
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.cgroup = Some(cgroup);
            // What is counted from its beginning.
            container.kills.get_or_insert_default();
        }
    }

    /// Reads the counter: a kill, if it rose. None also where it cannot be read.
    pub(super) fn settle(&mut self, id: &ContainerId) -> Option<Signal> {
        let watch = self.watch.as_ref()?;
        let container = self.containers.get_mut(id)?;
        let cgroup = container.cgroup.clone()?;
        match watch.hierarchy().kills(&cgroup) {
            Ok(now) if now.total > container.kills.map_or(0, |it| it.total) => {
                let limit = watch.hierarchy().memory(&cgroup).limit.or(container.memory_limit);
                container.looks.found();
                Some(container.kill(&self.source.name, now, limit))
            }
            Ok(_) => None,
            Err(_) => {
                self.gone(id);
                None
            }
        }
    }

    /// Its cgroup is gone, and with it the counter. If its end was not told, it will be asked for.
    pub(super) fn gone(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.looks.end();
        if !container.is_over() && container.vanished.is_none() {
            self.ask_later(id, 0);
        }
    }

    /// Its end may still be told; if not, containerd is asked, which has not answered so many times before.
    fn ask_later(&mut self, id: &ContainerId, unanswered: u32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let at = Instant::now() + TOLD_WITHIN;
        container.vanished = Some(Vanished { at, unanswered });
        self.due.insert((at, id.clone()));
    }

    /// The shim says that memory ran out. Where kills are counted, the counter is looked at, now and in a moment.
    pub(super) fn announced(&mut self, id: &ContainerId) -> Option<Signal> {
        let name = self.source.name.clone();
        if let Some(kill) = self.settle(id) {
            return Some(kill);
        }
        let hierarchy = self.watch.as_ref().map(super::watch::Watch::hierarchy);
        let container = self.containers.get_mut(id)?;
        let readable =
            container.cgroup.as_ref().zip(hierarchy).is_some_and(|(it, all)| all.kills(it).is_ok());
        if readable {
            self.look_again(id, false);
            return None;
        }
        let told = container.announced || container.kills.is_some_and(|kills| kills.total > 0);
        (!told).then(|| container.announced(&name))
    }

    /// `found`: a look was taken, and found the kill.
    fn look_again(&mut self, id: &ContainerId, found: bool) {
        if let (Some(container), Some(watch)) = (self.containers.get_mut(id), &self.watch) {
            container.looks.begin(watch.hierarchy().version(), found);
        }
        self.schedule(id);
    }

    /// When the counter is looked at next, if it is.
    fn schedule(&mut self, id: &ContainerId) {
        let (Some(container), Some(watch)) = (self.containers.get_mut(id), &self.watch) else { return };
        if let Some(at) = container.looks.at.take() {
            self.due.remove(&(at, id.clone()));
        }
        if let Some(gap) = container.looks.gap() {
            let at = Instant::now() + gap;
            container.looks.at = Some(at);
            self.due.insert((at, id.clone()));
            watch.wake_in(gap);
        }
    }

    pub(super) async fn noticed(&mut self, noticed: Vec<ContainerId>) -> bool {
        for id in noticed {
            let kill = self.settle(&id);
            self.look_again(&id, kill.is_some());
            if let Some(kill) = kill
                && !self.hand_on(kill, Ack::nobody()).await
            {
                return false;
            }
        }
        self.tend().await
    }

    /// Looks where it is time to.
    pub(super) async fn tend(&mut self) -> bool {
        let now = Instant::now();
        let mut vanished = false;
        while let Some((at, id)) = self.due.first().cloned().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id.clone()));
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if container.vanished.is_some_and(|it| it.at <= now) {
                vanished = true;
                continue;
            }
            let kill = self.settle(&id);
            if let Some(container) = self.containers.get_mut(&id) {
                container.looks.took();
            }
            self.schedule(&id);
            if let Some(kill) = kill
                && !self.hand_on(kill, Ack::nobody()).await
            {
                return false;
            }
        }
        if vanished && self.listing.is_empty() {
            let address = self.history.containerd.clone();
            self.listing.spawn(async move {
                match address {
                    Some(address) => identity::tasks(address).await,
                    None => Some(HashMap::new()),
                }
            });
        }
        true
    }

    /// What containerd knows of those whose end nobody told; none: it does not answer.
    pub(super) async fn listed(&mut self, tasks: Option<HashMap<String, TaskState>>) -> bool {
        let now = Instant::now();
        let over = |container: &Container| container.vanished.is_some_and(|it| it.at <= now);
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, it)| over(it)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            let unanswered = container.vanished.take().map_or(0, |it| it.unanswered);
            let status = match tasks.as_ref().map(|tasks| tasks.get(id.as_str())) {
                Some(Some(TaskState::Stopped(status))) => Some(*status),
                Some(Some(TaskState::Runs)) => {
                    // It has not heard of the end either.
                    self.ask_later(&id, 0);
                    continue;
                }
                None if unanswered < UNANSWERED => {
                    self.ask_later(&id, unanswered + 1);
                    continue;
                }
                Some(None) | None => None,
            };
            let process = Process { exec: None, pid: container.init_pid() };
            let (process, new) = container.ended(process);
            if container.started && new {
                tracing::info!(container = %id, ?status, "its end was told by nobody");
                let mut exit = container.exit(&self.source.name, &process, status, None, true);
                let because = "its shim could not tell its end";
                exit.attributes.push(("unknown-because".to_owned(), because.to_owned()));
                if !self.hand_on(exit, Ack::nobody()).await {
                    return false;
                }
            }
            self.forget(&id);
        }
        true
    }

    /// Containers that an earlier run of this router knew: their kills and ends since then.
    pub(super) async fn take_up(&mut self) -> bool {
        for lives in std::mem::take(&mut self.history.shims) {
            let Some(known) = lives.shim else { continue };
            let id = lives.container;
            let container = self.container(&known.namespace, &id);
            container.read(&known.bundle);
            container.started = true;
            container.begun(Process { exec: None, pid: known.pid });
            if let Some(total) = lives.kills_total {
                container.kills = Some(coroner_cgroup::Kills { total, ..coroner_cgroup::Kills::default() });
            }
            match known.cgroup {
                Some(cgroup) => {
                    self.arm(&id, Some(cgroup));
                    if let Some(kill) = self.settle(&id)
                        && !self.hand_on(kill, Ack::nobody()).await
                    {
                        return false;
                    }
                }
                // Nothing shows that it is gone: it is asked for once.
                None => self.gone(&id),
            }
        }
        self.counts.speaks_for(self.containers.len());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coroner_proto::address::Address;
    use tokio::sync::mpsc;

    use super::*;
    use crate::arrival::Arrival;
    use crate::claims::Registered;
    use crate::config::{Mode, Source, SourceKind};
    use crate::holds::Holds;
    use crate::signal::Event;
    use crate::source::Settlers;
    use crate::source::past::History;
    use crate::source::shim::Asked;

    fn source() -> (ShimSource, mpsc::Receiver<Arrival>) {
        let source = Source {
            name: "shims".to_owned(),
            kind: SourceKind::Shim,
            mode: Mode::Wrapped,
            guest: None,
            address: Address::Unix("/no-such.sock".into()),
            machine: None,
        };
        let (arrivals, told) = mpsc::channel(8);
        let asked = Asked { holds: Holds::default(), settlers: Settlers::new(Registered::default()) };
        let history = History::default();
        (ShimSource::new(source, "n".to_owned(), arrivals, Arc::default(), history, asked), told)
    }

    /// What containerd answers, each time it is asked, and the status of the end that is told then.
    async fn told(answers: &[Option<&[(&str, TaskState)]>]) -> Option<Option<u32>> {
        let (mut source, mut told) = source();
        let id = ContainerId::try_from("c1".to_owned()).unwrap();
        source.container("k8s.io", &id).started = true;
        source.gone(&id);
        for answer in answers {
            let due = source.containers.get_mut(&id).and_then(|it| it.vanished.as_mut()).unwrap();
            assert!(due.at > Instant::now() && told.is_empty());
            due.at = Instant::now();
            let tasks =
                answer.map(|tasks| tasks.iter().map(|(id, state)| ((*id).to_owned(), *state)).collect());
            assert!(source.listed(tasks).await);
        }
        let told = told.try_recv().ok()?;
        let Event::Exited(exited) = told.signal.event else { panic!("{told:?}") };
        assert!(exited.reconciled && !source.containers.contains_key(&id));
        Some(exited.status)
    }

    #[tokio::test]
    async fn an_end_that_nobody_told_is_asked_for_until_containerd_has_answered() {
        let (runs, stopped) =
            ([("c1", TaskState::Runs)], [("c1", TaskState::Stopped(3)), ("c2", TaskState::Runs)]);
        assert_eq!(told(&[Some(&stopped)]).await, Some(Some(3)));
        assert_eq!(told(&[Some(&[])]).await, Some(None));
        assert_eq!(told(&[Some(&runs), None, None, Some(&runs), Some(&stopped)]).await, Some(Some(3)));
        assert_eq!(told(&[None; 4]).await, None);
        assert_eq!(told(&[None; 5]).await, Some(None));
    }
}
