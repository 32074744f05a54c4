//! What the source `shim` makes of what it is asked, told, and notices. Each answers false when nobody takes signals any more.

use std::collections::HashMap;

use coroner_proto::shim::{self, RuleRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::container::Container;
use super::event::{Process, Told, What};
use super::service::{Ask, Counter};
use super::{ShimSource, TOLD_WITHIN};
use crate::arrival::{Ack, Arrival};
use crate::identity::{self, TaskState};
use crate::journal::{Lives, ShimLives};
use crate::signal::{ContainerId, Signal};

impl ShimSource {
    pub(super) async fn answer(&mut self, ask: Ask) -> bool {
        // Who no longer waits for an answer gets none.
        match ask {
            Ask::Counter(id, answer) => {
                let container = self.containers.get(&id);
                let counter = match container {
                    Some(container) if container.cgroup.is_some() => Counter::Here,
                    _ => Counter::Guest(container.and_then(|it| it.sandbox().map(str::to_owned))),
                };
                answer.send(counter).unwrap_or_default();
            }
            Ask::Forward { told, counted, written, answer } => {
                let Some(count) = self.forward(*told, counted, &written).await else { return false };
                answer.send(count).unwrap_or_default();
            }
            Ask::Rule { request, counted, answer } => match self.rule(*request, counted).await {
                Some(id) => drop(answer.send(id)),
                None => return false,
            },
            Ask::Created { namespace, id, bundle, pid, answer } => {
                let id = ContainerId::try_from(id).map_err(|error| error.to_string());
                let created = id.map(|id| {
                    self.created(&namespace, &id, &bundle, pid);
                    self.container(&namespace, &id).started = true;
                });
                answer.send(created).unwrap_or_default();
            }
            Ask::Deleted { id, answer } => {
                if let Ok(id) = ContainerId::try_from(id) {
                    self.forget(&id);
                }
                answer.send(()).unwrap_or_default();
            }
            Ask::Requested(request, answer) => {
                if !self.requested(&request.namespace, &request.requests).await {
                    return false;
                }
                answer.send(()).unwrap_or_default();
            }
            Ask::Released(request, answer) => {
                let process = request.process.clone().unwrap_or_default();
                if request.expired {
                    tracing::warn!(
                        container = process.container_id,
                        exec = process.exec_id,
                        status = request.status,
                        "a hold was over before the ruling: who waited was told the real status"
                    );
                }
                // A proxy tells it until it is answered: the container may be deleted by then, and is not to be kept for that.
                let id = named(process).map(|(id, process)| match self.containers.get(&id) {
                    Some(container) => container.exit_id(&self.source.name, &container.known(process)),
                    None => Container::new(&self.node, &request.namespace, &id)
                        .exit_id(&self.source.name, &process),
                });
                drop(answer.send(id));
            }
        }
        true
    }

    /// Takes an event in: how many signals it became.
    async fn forward(&mut self, told: Told, counted: bool, written: &mpsc::Sender<u64>) -> Option<usize> {
        let Told { namespace, container: id, what, verbatim } = told;
        let name = self.source.name.clone();
        let container = self.container(&namespace, &id);
        container.counted_in_guest |= counted;
        let mut signals = Vec::new();
        match what {
            What::Created { bundle, pid } => {
                self.created(&namespace, &id, &bundle, Some(pid).filter(|pid| *pid != 0));
                signals.push(self.container(&namespace, &id).forwarded(&name, verbatim));
            }
            What::Started => {
                container.started = true;
                signals.push(container.forwarded(&name, verbatim));
            }
            What::ExecStarted(process) => {
                container.begun(process);
                signals.push(container.forwarded(&name, verbatim));
            }
            // Where a guest's agent counts, it says whether one was killed.
            What::Oom if counted => {}
            What::Oom => signals.extend(self.announced(&id)),
            What::Exited { process, status, at_ns } => {
                // Before the exit, whoever tells that first.
                signals.extend(self.settle(&id));
                let container = self.container(&namespace, &id);
                let (process, new) = container.ended(process);
                signals.extend(new.then(|| container.exit(&name, &process, Some(status), at_ns, false)));
            }
            What::Deleted => {
                let event = container.forwarded(&name, verbatim);
                self.forget(&id);
                signals.push(event);
            }
            What::Else => signals.push(container.forwarded(&name, verbatim)),
        }
        let count = signals.len();
        for signal in signals {
            if !self.hand_on(signal, Ack::new(0, written.clone(), None)).await {
                return None;
            }
        }
        Some(count)
    }

    async fn rule(&mut self, request: RuleRequest, counted: bool) -> Option<Result<String, String>> {
        let (id, process) = match named(request.process.unwrap_or_default()) {
            Ok(named) => named,
            Err(error) => return Some(Err(error)),
        };
        if !self.requested(&request.namespace, &request.requests).await {
            return None;
        }
        let name = self.source.name.clone();
        self.container(&request.namespace, &id).counted_in_guest |= counted;
        let mut signals: Vec<Signal> = self.settle(&id).into_iter().collect();
        let container = self.container(&request.namespace, &id);
        let (process, new) = container.ended(process);
        let exit = container.exit_id(&name, &process);
        signals.extend(
            new.then(|| container.exit(&name, &process, Some(request.status), request.exited_at_ns, false)),
        );
        for signal in signals {
            if !self.hand_on(signal, Ack::nobody()).await {
                return None;
            }
        }
        Some(Ok(exit))
    }

    async fn requested(&mut self, namespace: &str, requests: &[shim::KillRequest]) -> bool {
        let name = self.source.name.clone();
        for request in requests {
            let Ok(id) = ContainerId::try_from(request.container_id.clone()) else { continue };
            let container = self.container(namespace, &id);
            let signal = container.asked(request).then(|| container.request(&name, request)).flatten();
            if let Some(signal) = signal
                && !self.hand_on(signal, Ack::nobody()).await
            {
                return false;
            }
        }
        true
    }

    pub(super) async fn hand_on(&mut self, signal: Signal, ack: Ack) -> bool {
        let container = self.containers.get(&signal.target.container_id);
        let counted = container.is_some_and(|it| it.cgroup.is_some() || it.counted_in_guest);
        let origin = if counted { &self.counted } else { &self.uncounted };
        let memory_limit = container.and_then(|it| it.memory_limit);
        let (origin, attributes) = (origin.clone(), Vec::new());
        let arrival = Arrival { signal, origin, usage_bytes: None, memory_limit, attributes, ack };
        self.counts.signals.one();
        self.arrivals.send(arrival).await.is_ok()
    }

    fn container(&mut self, namespace: &str, id: &ContainerId) -> &mut Container {
        let node = &self.node;
        self.containers.entry(id.clone()).or_insert_with(|| Container::new(node, namespace, id))
    }

    /// A container is there: who it is, and where its kills are counted.
    fn created(&mut self, namespace: &str, id: &ContainerId, folder: &str, pid: Option<u32>) {
        let container = self.container(namespace, id);
        let bundle = container.read(folder);
        container.begun(Process { exec: None, pid });
        let cgroup = pid.and_then(|pid| self.cgroup_of(pid)).filter(|cgroup| bundle.has(cgroup));
        self.arm(id, cgroup.clone());
        self.counts.speaks_for(self.containers.len());
        if let Some(journal) = &self.history.journal {
            journal.lives(Lives {
                source: self.source.name.clone(),
                stream: String::new(),
                container: id.clone(),
                kills_total: None,
                shim: Some(ShimLives {
                    namespace: namespace.to_owned(),
                    bundle: folder.to_owned(),
                    cgroup,
                    pid,
                }),
            });
        }
    }

    fn cgroup_of(&self, pid: u32) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.watch.as_ref()?.hierarchy().membership(&text).map(str::to_owned)
    }

    /// Where a counter can be read, it is what counts.
    fn arm(&mut self, id: &ContainerId, cgroup: Option<String>) {
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
    fn settle(&mut self, id: &ContainerId) -> Option<Signal> {
        let watch = self.watch.as_ref()?;
        let container = self.containers.get_mut(id)?;
        let cgroup = container.cgroup.clone()?;
        match watch.hierarchy().kills(&cgroup) {
            Ok(now) if now.total > container.kills.map_or(0, |it| it.total) => {
                let limit = watch.hierarchy().memory(&cgroup).limit.or(container.memory_limit);
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
    fn gone(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.looks.end();
        if !container.is_over() && container.vanished.is_none() {
            let at = Instant::now() + TOLD_WITHIN;
            container.vanished = Some(at);
            self.due.insert((at, id.clone()));
        }
    }

    /// The shim says that memory ran out. Where kills are counted, the counter is looked at, now and in a moment.
    fn announced(&mut self, id: &ContainerId) -> Option<Signal> {
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

    fn forget(&mut self, id: &ContainerId) {
        if let Some(watch) = &mut self.watch {
            watch.disarm(id);
        }
        if let Some(container) = self.containers.remove(id)
            && !container.is_over()
            && let Some(journal) = &self.history.journal
        {
            journal.gone(id.clone());
        }
        self.counts.speaks_for(self.containers.len());
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
            if container.vanished.is_some_and(|until| until <= now) {
                vanished = true;
                continue;
            }
            let kill = self.settle(&id);
            if let Some(container) = self.containers.get_mut(&id) {
                container.looks.took(kill.is_some());
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
                    None => HashMap::new(),
                }
            });
        }
        true
    }

    /// What containerd knows of those whose end nobody told.
    pub(super) async fn listed(&mut self, tasks: HashMap<String, TaskState>) -> bool {
        let now = Instant::now();
        let over = |container: &Container| container.vanished.is_some_and(|until| until <= now);
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, it)| over(it)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            container.vanished = None;
            let status = match tasks.get(id.as_str()) {
                Some(TaskState::Runs) => continue,
                Some(TaskState::Stopped(status)) => Some(*status),
                None => None,
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

/// The process that a proxy speaks of.
fn named(process: shim::Process) -> Result<(ContainerId, Process), String> {
    let id = ContainerId::try_from(process.container_id).map_err(|error| error.to_string())?;
    let exec = (!process.exec_id.is_empty()).then_some(process.exec_id);
    Ok((id, Process { exec, pid: process.pid.filter(|pid| *pid != 0) }))
}
