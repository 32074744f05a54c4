//! What the source `shim` makes of what it is asked and told. Each answers false when nobody takes signals any more.

use coroner_proto::shim::{self, RuleRequest};
use tokio::sync::mpsc;

use super::container::Container;
use super::event::{Process, Told, What};
use super::service::{Ask, Counter};
use super::{DELETED, ShimSource};
use crate::arrival::{Ack, Arrival};
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
        if self.is_deleted(&id) && !verbatim.is_creation() {
            let signal = match what {
                What::Exited { .. } => None,
                What::Oom if counted => None,
                What::Oom => self.announced_late(&id),
                What::Created { .. } | What::Started | What::ExecStarted(_) | What::Deleted | What::Else => {
                    Some(Container::new(&self.node, &namespace, &id).forwarded(&name, verbatim))
                }
            };
            return self.hand_on_all(signal.into_iter().collect(), written).await;
        }
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
                signals.push(container.forwarded(&name, verbatim));
                if container.started && !container.is_over() {
                    // A shim tells what was not taken once more, behind what came after it: the end may still come.
                    self.gone(&id);
                } else {
                    self.forget(&id);
                }
            }
            What::Else => signals.push(container.forwarded(&name, verbatim)),
        }
        self.hand_on_all(signals, written).await
    }

    /// How many they are.
    async fn hand_on_all(&mut self, signals: Vec<Signal>, written: &mpsc::Sender<u64>) -> Option<usize> {
        let count = signals.len();
        for signal in signals {
            if !self.hand_on(signal, Ack::new(0, written.clone(), None)).await {
                return None;
            }
        }
        Some(count)
    }

    fn is_deleted(&self, id: &ContainerId) -> bool {
        !self.containers.contains_key(id) && self.deleted.iter().any(|(deleted, _)| deleted == id)
    }

    /// An OOM that is announced after the deletion: told late rather than never.
    fn announced_late(&mut self, id: &ContainerId) -> Option<Signal> {
        let (_, container) = self.deleted.iter_mut().rev().find(|(deleted, _)| deleted == id)?;
        let told = container.announced || container.kills.is_some_and(|kills| kills.total > 0);
        (!told).then(|| container.announced(&self.source.name))
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
            return Some(Err(format!("{id} was deleted: its end was told")));
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
            if self.is_deleted(&id) {
                continue;
            }
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

    pub(super) fn container(&mut self, namespace: &str, id: &ContainerId) -> &mut Container {
        let node = &self.node;
        self.containers.entry(id.clone()).or_insert_with(|| Container::new(node, namespace, id))
    }

    /// A container is there: who it is, and where its kills are counted.
    fn created(&mut self, namespace: &str, id: &ContainerId, folder: &str, pid: Option<u32>) {
        self.deleted.retain(|(deleted, _)| deleted != id);
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
                    sandbox: bundle.sandbox_id.clone(),
                    cgroup,
                    pid,
                }),
            });
        }
    }

    pub(super) fn forget(&mut self, id: &ContainerId) {
        if let Some(watch) = &mut self.watch {
            watch.disarm(id);
        }
        if let Some(container) = self.containers.remove(id) {
            if let Some(journal) = self.history.journal.as_ref().filter(|_| !container.is_over()) {
                journal.gone(id.clone());
            }
            if self.deleted.len() >= DELETED {
                self.deleted.pop_front();
            }
            self.deleted.push_back((id.clone(), container));
        }
        self.counts.speaks_for(self.containers.len());
    }
}

/// The process that a proxy speaks of.
fn named(process: shim::Process) -> Result<(ContainerId, Process), String> {
    let id = ContainerId::try_from(process.container_id).map_err(|error| error.to_string())?;
    let exec = (!process.exec_id.is_empty()).then_some(process.exec_id);
    Ok((id, Process { exec, pid: process.pid.filter(|pid| *pid != 0) }))
}
