//! The mailbox of the source `shim`: handles each request to its task. Handlers return false, or
//! `None`, once the signal channel is closed.

use std::sync::Arc;

use coroner_cgroup::Kills;
use coroner_proto::shim::{self, RuleRequest};
use tokio::sync::mpsc;

use super::container::WrappedContainer;
use super::event::{ShimEvent, ShimEventKind};
use super::service::{Counter, ShimRequest};
use super::{DELETED, ShimSource};
use crate::envelope::{Ack, Envelope};
use coroner_containerd::holds::{Input, Process, Reporter};
use coroner_core::mode::Mode;
use coroner_core::signal::{ContainerId, Signal};
use coroner_journal::{RunningContainer, ShimContainer};

impl ShimSource {
    pub(super) async fn answer(&mut self, request: ShimRequest) -> bool {
        // A requester that has stopped waiting gets no answer.
        match request {
            ShimRequest::Counter(id, answer) => {
                let container = self.containers.get(&id);
                let counter = match container {
                    Some(container) if container.cgroup.is_some() => Counter::Here,
                    _ => Counter::Guest(container.and_then(|it| it.sandbox().map(str::to_owned))),
                };
                answer.send(counter).unwrap_or_default();
            }
            ShimRequest::Forward { event, counted, written, answer } => {
                let Some(count) = self.forward(*event, counted, &written).await else { return false };
                answer.send(count).unwrap_or_default();
            }
            ShimRequest::Rule { request, counted, answer } => match self.rule(*request, counted).await {
                Some(id) => drop(answer.send(id)),
                None => return false,
            },
            ShimRequest::Created { namespace, id, bundle, pid, answer } => {
                let id = ContainerId::try_from(id).map_err(|error| error.to_string());
                let created = id.map(|id| {
                    self.created(&namespace, &id, &bundle, pid);
                    self.container(&namespace, &id).started = true;
                });
                answer.send(created).unwrap_or_default();
            }
            ShimRequest::OomKill { namespace, id, total, written, answer } => {
                let Some(count) = self.killed(&namespace, &id, total, &written).await else { return false };
                answer.send(count).unwrap_or_default();
            }
            ShimRequest::Deleted { id, answer } => {
                if let Ok(id) = ContainerId::try_from(id) {
                    self.forget(&id);
                }
                answer.send(()).unwrap_or_default();
            }
            ShimRequest::Requested(request, answer) => {
                if !self.requested(&request.namespace, &request.requests).await {
                    return false;
                }
                answer.send(()).unwrap_or_default();
            }
            ShimRequest::Released(request, answer) => {
                let process = request.process.clone().unwrap_or_default();
                let released =
                    named(process).map(|(id, process)| self.released(&id, process, request.status));
                drop(answer.send(released));
            }
        }
        true
    }

    /// Handles an event; returns the number of signals it became.
    async fn forward(
        &mut self,
        event: ShimEvent,
        counted: bool,
        written: &mpsc::Sender<u64>,
    ) -> Option<usize> {
        if self.is_deleted(&event.container) && !event.verbatim.is_creation() {
            let signal = self.forward_deleted(event, counted);
            return self.send_all(signal.into_iter().collect(), written).await;
        }
        let exec = event.exec().map(str::to_owned);
        let ShimEvent { namespace, container: id, kind, verbatim } = event;
        let name = self.source.name.clone();
        let exec = exec.as_deref();
        let container = self.container(&namespace, &id);
        container.counted_in_guest |= counted;
        let mut signals = Vec::new();
        match kind {
            ShimEventKind::Created { bundle, pid } => {
                self.created(&namespace, &id, &bundle, Some(pid).filter(|pid| *pid != 0));
                signals.push(self.container(&namespace, &id).forwarded(&name, exec, verbatim));
            }
            ShimEventKind::Started(process) | ShimEventKind::ExecStarted(process) => {
                container.started |= process.exec.is_none();
                signals.push(container.forwarded(&name, exec, verbatim));
                self.started(&id, process);
            }
            ShimEventKind::ExecAdded(process) => {
                container.processes.created(process);
                signals.push(container.forwarded(&name, exec, verbatim));
            }
            // Where a guest's agent counts kills, it reports them.
            ShimEventKind::Oom if counted => {}
            ShimEventKind::Oom => signals.extend(self.announced(&id)),
            ShimEventKind::Exited { process, status, at_ns } => {
                // A kill goes before the exit, whether shim or proxy reports the exit first.
                signals.extend(self.read_final_counter(&id, Some(status)));
                let exit = self.exit(&id, process, Reporter::Shim, Some(status), at_ns);
                signals.extend(exit.and_then(|(_, signal)| signal));
            }
            ShimEventKind::Deleted { process, status, at_ns } => {
                signals.extend(self.ended_by_deletion(&id, process, status, at_ns));
                let container = self.container(&namespace, &id);
                signals.push(container.forwarded(&name, exec, verbatim));
                if container.started && !container.processes.is_over() {
                    // A shim retries an event that was not accepted, after later events: the exit
                    // may still be received.
                    self.gone(&id);
                } else {
                    self.forget(&id);
                }
            }
            ShimEventKind::ExecDeleted(_) | ShimEventKind::Else => {
                signals.push(container.forwarded(&name, exec, verbatim))
            }
        }
        self.send_all(signals, written).await
    }

    /// The end of a container, and its kills, where the deletion is reported first. A task that is
    /// deleted at once leaves its shim no time to publish the exit, and the deletion has it too.
    /// Not in mode `proxy`, where the proxy's request has it.
    fn ended_by_deletion(
        &mut self,
        id: &ContainerId,
        process: Process,
        status: u32,
        at_ns: Option<u64>,
    ) -> Vec<Signal> {
        let is_open = |it: &WrappedContainer| it.started && !it.processes.is_over();
        let is_first = self.source.mode == Mode::Wrapped && self.containers.get(id).is_some_and(is_open);
        // Without a time it is not the status of an end.
        if !is_first || at_ns.is_none() {
            return Vec::new();
        }
        let mut signals = self.read_final_counter(id, Some(status));
        let exit = self.exit(id, process, Reporter::Shim, Some(status), at_ns);
        signals.extend(exit.and_then(|(_, signal)| signal));
        signals
    }

    /// Handles a kill that an embedding shim reports; returns the number of signals it became.
    async fn killed(
        &mut self,
        namespace: &str,
        id: &ContainerId,
        total: Option<u64>,
        written: &mpsc::Sender<u64>,
    ) -> Option<Result<usize, String>> {
        if self.is_deleted(id) {
            return Some(Err(format!("{id} was deleted: no kill of it is recorded")));
        }
        let name = self.source.name.clone();
        let container = self.container(namespace, id);
        let kill = match total {
            // A counter that is read here is evidence that needs no report.
            Some(total) if container.cgroup.is_none() => {
                container.counted_in_guest = true;
                let rose = container.kills.is_none_or(|before| total > before.total) && total > 0;
                let now = Kills { total, ..Kills::default() };
                rose.then(|| container.kill(&name, now, container.memory_limit))
            }
            Some(_) | None => self.announced(id),
        };
        self.send_all(kill.into_iter().collect(), written).await.map(Ok)
    }

    /// The signal of an event about a deleted container: its exit was reported, an OOM may not be.
    fn forward_deleted(&mut self, event: ShimEvent, counted: bool) -> Option<Signal> {
        match event.kind {
            ShimEventKind::Exited { .. } => None,
            ShimEventKind::Oom if counted => None,
            ShimEventKind::Oom => self.announced_late(&event.container),
            ShimEventKind::Created { .. }
            | ShimEventKind::Started(_)
            | ShimEventKind::ExecAdded(_)
            | ShimEventKind::ExecStarted(_)
            | ShimEventKind::Deleted { .. }
            | ShimEventKind::ExecDeleted(_)
            | ShimEventKind::Else => {
                let container = WrappedContainer::new(&self.node, &event.namespace, &event.container);
                let exec = event.exec().map(str::to_owned);
                Some(container.forwarded(&self.source.name, exec.as_deref(), event.verbatim))
            }
        }
    }

    /// Sends signals; returns their number.
    async fn send_all(&mut self, signals: Vec<Signal>, written: &mpsc::Sender<u64>) -> Option<usize> {
        let count = signals.len();
        for signal in signals {
            if !self.send_signal(signal, Ack::new(0, written.clone(), None)).await {
                return None;
            }
        }
        Some(count)
    }

    fn is_deleted(&self, id: &ContainerId) -> bool {
        !self.containers.contains_key(id) && self.deleted.iter().any(|(deleted, _)| deleted == id)
    }

    /// An OOM that is announced after the deletion: reported late rather than never.
    fn announced_late(&mut self, id: &ContainerId) -> Option<Signal> {
        let (_, container) = self.deleted.iter_mut().rev().find(|(deleted, _)| deleted == id)?;
        let was_reported = container.announced || container.kills.is_some_and(|kills| kills.total > 0);
        (!was_reported).then(|| container.announced(&self.source.name))
    }

    async fn rule(&mut self, request: RuleRequest, counted: bool) -> Option<Result<String, String>> {
        let (id, process) = match named(request.process.unwrap_or_default()) {
            Ok(named) => named,
            Err(error) => return Some(Err(error)),
        };
        if !self.requested(&request.namespace, &request.requests).await {
            return None;
        }
        if self.is_deleted(&id) {
            return Some(Err(format!("{id} was deleted: its end was reported")));
        }
        self.container(&request.namespace, &id).counted_in_guest |= counted;
        let mut signals = self.read_final_counter(&id, Some(request.status));
        let (status, at_ns) = (Some(request.status), request.exited_at_ns);
        let (exit, signal) = self.exit(&id, process, Reporter::Request, status, at_ns)?;
        if !request.hold_id.is_empty() {
            self.barriers.holds.bind(&request.hold_id, &exit);
        }
        signals.extend(signal);
        for signal in signals {
            if !self.send_signal(signal, Ack::none()).await {
                return None;
            }
        }
        Some(Ok(exit))
    }

    /// A process has started. Its exit may have been reported without its pid.
    fn started(&mut self, id: &ContainerId, process: Process) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let pid = process.pid;
        if let Some(reported) = container.processes.started(process)
            && let Some(pid) = pid
        {
            let exit = container.exit_id(&self.source.name, &reported);
            self.barriers.holds.apply(&exit, Input::Pid(pid));
        }
    }

    /// A process has ended: its exit's id, and the signal if it was not reported before.
    fn exit(
        &mut self,
        id: &ContainerId,
        process: Process,
        reporter: Reporter,
        status: Option<u32>,
        at_ns: Option<u64>,
    ) -> Option<(String, Option<Signal>)> {
        let name = &self.source.name;
        let container = self.containers.get_mut(id)?;
        let ended = container.processes.ended(process, reporter);
        let exit = container.exit_id(name, &ended.process);
        // Exits are held in mode `proxy` only.
        if self.source.mode == Mode::Proxy {
            self.barriers.holds.ended(&exit, &ended, reporter);
        }
        let signal = ended.is_first.then(|| container.exit(name, &ended.process, status, at_ns, false));
        Some((exit, signal))
    }

    /// A status was released, but its hold has no id or is unknown.
    fn released(&mut self, id: &ContainerId, process: Process, status: u32) {
        // A proxy retries until it is answered. The container may be deleted by then and must not
        // be created again.
        let deleted = self.deleted.iter_mut().rev().find(|(deleted, _)| deleted == id).map(|(_, it)| it);
        let Some(container) = self.containers.get_mut(id).or(deleted) else { return };
        if let Some(process) = container.processes.released(process, status) {
            let exit = container.exit_id(&self.source.name, &process);
            self.barriers.holds.apply(&exit, Input::Released(status));
        }
    }

    async fn requested(&mut self, namespace: &str, requests: &[shim::KillRequest]) -> bool {
        let name = self.source.name.clone();
        for request in requests {
            let Ok(id) = ContainerId::try_from(request.container_id.clone()) else { continue };
            if self.is_deleted(&id) {
                continue;
            }
            let container = self.container(namespace, &id);
            let signal =
                container.is_new_request(request).then(|| container.request(&name, request)).flatten();
            if let Some(signal) = signal
                && !self.send_signal(signal, Ack::none()).await
            {
                return false;
            }
        }
        true
    }

    pub(super) async fn send_signal(&mut self, signal: Signal, ack: Ack) -> bool {
        let container = self.containers.get(&signal.target.container_id);
        let counted = container.is_some_and(|it| it.cgroup.is_some() || it.counted_in_guest);
        let origin = if counted { &self.counted } else { &self.uncounted };
        let memory_limit = container.and_then(|it| it.memory_limit);
        let envelope = Envelope { memory_limit, ..Envelope::new(signal, Arc::clone(origin), ack) };
        self.counts.signals.one();
        self.envelopes.send(envelope).await.is_ok()
    }

    pub(super) fn container(&mut self, namespace: &str, id: &ContainerId) -> &mut WrappedContainer {
        let node = &self.node;
        self.containers.entry(id.clone()).or_insert_with(|| WrappedContainer::new(node, namespace, id))
    }

    /// Records a created container: its identity, and where its kills are counted.
    fn created(&mut self, namespace: &str, id: &ContainerId, folder: &str, pid: Option<u32>) {
        self.deleted.retain(|(deleted, _)| deleted != id);
        let container = self.container(namespace, id);
        let bundle = container.read(folder);
        container.processes.created(Process { exec: None, pid });
        let cgroup = pid.and_then(|pid| self.cgroup_of(pid));
        let cgroup = cgroup.as_deref().and_then(|of_init| bundle.cgroup(of_init)).map(str::to_owned);
        self.watch_counter(id, cgroup.clone());
        self.counts.set_containers(self.containers.len());
        if let Some(journal) = &self.recovered.journal {
            journal.running(RunningContainer {
                source: self.source.name.clone(),
                stream: String::new(),
                container: id.clone(),
                kills_total: None,
                shim: Some(ShimContainer {
                    namespace: namespace.to_owned(),
                    bundle: folder.to_owned(),
                    sandbox: bundle.sandbox_id.clone(),
                    cgroup,
                    pid,
                }),
            });
        }
    }

    pub(super) fn forget(&mut self, id: &ContainerId) {
        if let Some(watch) = &mut self.watch {
            watch.remove(id);
        }
        if let Some(container) = self.containers.remove(id) {
            if let Some(cgroup) = &container.cgroup {
                self.pods.remove(id, cgroup);
            }
            if let Some(journal) = self.recovered.journal.as_ref().filter(|_| !container.processes.is_over())
            {
                journal.gone(id.clone());
            }
            if self.deleted.len() >= DELETED {
                self.deleted.pop_front();
            }
            self.deleted.push_back((id.clone(), container));
        }
        self.counts.set_containers(self.containers.len());
    }
}

/// The process of a proxy's request.
fn named(process: shim::Process) -> Result<(ContainerId, Process), String> {
    let id = ContainerId::try_from(process.container_id).map_err(|error| error.to_string())?;
    let exec = (!process.exec_id.is_empty()).then_some(process.exec_id);
    Ok((id, Process { exec, pid: process.pid.filter(|pid| *pid != 0) }))
}
