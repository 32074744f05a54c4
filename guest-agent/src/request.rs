//! What a reader may ask of the watcher itself: to settle a counter, to watch a cgroup or a process, and to stop that.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::exit::{MAX_EXECS, MAX_PROCESSES};
use crate::pressure::Trigger;
use crate::process;
use crate::reap::Command;
use crate::state::Known;
use crate::watcher::{Origin, Watcher};

/// A question and where its answer goes.
#[derive(Debug)]
pub(crate) enum Request {
    Settle { id: String, answer: oneshot::Sender<Known> },
    Watch { watch: Watch, answer: oneshot::Sender<Result<(), Refusal>> },
    Unwatch { id: String, answer: oneshot::Sender<()> },
    Command(Command),
}

/// A container, and maybe one of its processes. The cgroup has a leading slash, or is empty for a container that is known.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) id: String,
    pub(crate) cgroup: String,
    pub(crate) pid: Option<u32>,
    pub(crate) exec: Option<String>,
    pub(crate) pressure: Vec<Trigger>,
}

/// Why something is not watched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no cgroup `{0}` below the hierarchy's root")]
    NoCgroup(String),
    #[error("container {id} is watched at {cgroup}")]
    Elsewhere { id: String, cgroup: String },
    #[error("cgroup {cgroup} is container {id}")]
    Taken { id: String, cgroup: String },
    #[error("process {0} is another container's or exec's")]
    PidTaken(u32),
    #[error("too many are watched")]
    Full,
}

impl Watcher {
    pub(crate) fn answer(&mut self, request: Request) {
        // Who no longer waits for an answer gets none.
        match request {
            Request::Settle { id, answer } => drop(answer.send(self.settle(&id)).ok()),
            Request::Watch { watch, answer } => drop(answer.send(self.watch(&watch))),
            Request::Unwatch { id, answer } => {
                self.unwatch(&id);
                answer.send(()).ok();
            }
            Request::Command(command) => {
                self.command = Some(command);
                self.reap();
            }
        }
    }

    fn settle(&mut self, id: &str) -> Known {
        if let Some(key) = self.by_id.get(id).copied() {
            self.look_at_kills(key);
        }
        self.shared.with(|state| state.known(id))
    }

    fn watch(&mut self, watch: &Watch) -> Result<(), Refusal> {
        let key = self.container_for(watch)?;
        if !watch.pressure.is_empty() {
            self.ask_for_pressure(key, &watch.pressure);
        }
        let Some(pid) = watch.pid else { return Ok(()) };
        let exec = watch.exec.as_deref();
        if let Some(known) = self.by_pid.get(&pid) {
            let same = known.0 == key && known.1.as_deref() == exec;
            return if same { Ok(()) } else { Err(Refusal::PidTaken(pid)) };
        }
        let execs = self.containers.get(&key).map_or(0, |container| container.execs.len());
        if self.by_pid.len() >= MAX_PROCESSES || exec.is_some() && execs >= MAX_EXECS {
            return Err(Refusal::Full);
        }
        match process::open(pid) {
            Some(handle) => self.track(key, exec, pid, handle),
            // It ended before it was named.
            None => {
                let code = self.recent.iter().rev().find(|(ended, _)| *ended == pid).map(|(_, code)| *code);
                let told = exec.is_none() && self.shared.with(|state| state.has_exited(&watch.id));
                if !told {
                    self.tell_exit(key, exec, Some(pid), code);
                }
            }
        }
        Ok(())
    }

    fn container_for(&mut self, watch: &Watch) -> Result<u32, Refusal> {
        if let Some(key) = self.by_id.get(&watch.id).copied() {
            let there = self.containers.get(&key).map_or("", |container| &container.cgroup);
            if watch.cgroup.is_empty() || *there == *watch.cgroup {
                return Ok(key);
            }
            return Err(Refusal::Elsewhere { id: watch.id.clone(), cgroup: there.to_owned() });
        }
        if watch.cgroup.is_empty() || !self.hierarchy.folder(&watch.cgroup).is_dir() {
            return Err(Refusal::NoCgroup(watch.cgroup.clone()));
        }
        let cgroup: Arc<str> = Arc::from(watch.cgroup.as_str());
        if let Some(container) = self.by_cgroup.get(&cgroup).and_then(|key| self.containers.get(key)) {
            return Err(Refusal::Taken { id: container.id.clone(), cgroup: watch.cgroup.clone() });
        }
        let mut changes = Vec::new();
        let adopted = self.tree.adopt(&cgroup, &mut changes);
        changes.into_iter().for_each(|change| self.apply(change));
        if !adopted {
            return Err(Refusal::Full);
        }
        self.appear(&watch.id, &cgroup, Origin::Requested).ok_or(Refusal::Full)
    }

    /// Ends what a Watch began; what is below the roots is watched on.
    fn unwatch(&mut self, id: &str) {
        let Some(key) = self.by_id.get(id).copied() else { return };
        let Some(container) = self.containers.get(&key).filter(|container| container.requested) else {
            return;
        };
        self.tree.forget(&container.cgroup);
        self.remove(key);
        self.shared.with(|state| state.forget(id));
    }
}
