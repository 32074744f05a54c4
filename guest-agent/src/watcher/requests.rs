//! Requests of readers that the watcher answers itself: the final read of a counter, and to watch
//! or unwatch a cgroup or a process.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::pressure::PsiTrigger;
use crate::process;
use crate::state::ContainerSummary;
use crate::watcher::exits::{MAX_EXECS, MAX_PROCESSES};
use crate::watcher::reaper::StartedCommand;
use crate::watcher::{Origin, Watcher};

/// A request with the sender for its answer.
#[derive(Debug)]
pub(crate) enum Request {
    FinalCount { id: String, answer: oneshot::Sender<ContainerSummary> },
    ContainerWatch { watch: ContainerWatch, answer: oneshot::Sender<Result<(), WatchRefusal>> },
    Unwatch { id: String, answer: oneshot::Sender<()> },
    Evidence { id: String, answer: oneshot::Sender<Option<Vec<u8>>> },
    Command(StartedCommand),
}

/// A container to watch, and optionally one of its processes. The cgroup has a leading slash, or is
/// empty for a container that is known.
#[derive(Debug)]
pub(crate) struct ContainerWatch {
    pub(crate) id: String,
    pub(crate) cgroup: String,
    pub(crate) pid: Option<u32>,
    pub(crate) exec: Option<String>,
    pub(crate) pressure: Vec<PsiTrigger>,
}

/// Why something is not watched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WatchRefusal {
    #[error("no cgroup `{0}` below the hierarchy's root")]
    NoCgroup(String),
    #[error("container {id} is watched at {cgroup}")]
    Elsewhere { id: String, cgroup: String },
    #[error("cgroup {cgroup} is container {id}")]
    Taken { id: String, cgroup: String },
    #[error("process {0} is another container's or exec's")]
    PidTaken(u32),
    #[error("the limit on watched containers or processes is reached")]
    Full,
}

impl Watcher {
    pub(crate) fn answer(&mut self, request: Request) {
        // A send fails if the caller no longer waits for the answer.
        match request {
            Request::FinalCount { id, answer } => drop(answer.send(self.final_count(&id)).ok()),
            Request::ContainerWatch { watch, answer } => drop(answer.send(self.watch(&watch))),
            Request::Unwatch { id, answer } => {
                self.unwatch(&id);
                answer.send(()).ok();
            }
            Request::Evidence { id, answer } => drop(answer.send(self.evidence_of(&id))),
            Request::Command(command) => {
                self.command = Some(command);
                self.reap();
            }
        }
    }

    fn final_count(&mut self, id: &str) -> ContainerSummary {
        if let Some(key) = self.by_id.get(id).copied() {
            self.poll_kills(key);
        }
        self.shared.with(|state| state.summary(id))
    }

    fn watch(&mut self, watch: &ContainerWatch) -> Result<(), WatchRefusal> {
        let key = self.container_for(watch)?;
        if !watch.pressure.is_empty() {
            self.request_pressure(key, &watch.pressure);
        }
        let Some(pid) = watch.pid else { return Ok(()) };
        let exec = watch.exec.as_deref();
        if let Some(known) = self.by_pid.get(&pid) {
            let same = known.0 == key && known.1.as_deref() == exec;
            return if same { Ok(()) } else { Err(WatchRefusal::PidTaken(pid)) };
        }
        let execs = self.containers.get(&key).map_or(0, |container| container.execs.len());
        if self.by_pid.len() >= MAX_PROCESSES || exec.is_some() && execs >= MAX_EXECS {
            return Err(WatchRefusal::Full);
        }
        match process::open(pid) {
            Some(handle) => self.track(key, exec, pid, handle),
            // It ended before the request named it.
            None => {
                let code = self.recent.iter().rev().find(|(ended, _)| *ended == pid).map(|(_, code)| *code);
                let is_recorded = exec.is_none() && self.shared.with(|state| state.has_exited(&watch.id));
                if !is_recorded {
                    self.record_exit(key, exec, Some(pid), code);
                }
            }
        }
        Ok(())
    }

    fn container_for(&mut self, watch: &ContainerWatch) -> Result<u32, WatchRefusal> {
        if let Some(key) = self.by_id.get(&watch.id).copied() {
            let there = self.containers.get(&key).map_or("", |container| &container.cgroup);
            if watch.cgroup.is_empty() || *there == *watch.cgroup {
                return Ok(key);
            }
            return Err(WatchRefusal::Elsewhere { id: watch.id.clone(), cgroup: there.to_owned() });
        }
        if watch.cgroup.is_empty() || !self.hierarchy.folder(&watch.cgroup).is_dir() {
            return Err(WatchRefusal::NoCgroup(watch.cgroup.clone()));
        }
        let cgroup: Arc<str> = Arc::from(watch.cgroup.as_str());
        if let Some(container) = self.by_cgroup.get(&cgroup).and_then(|key| self.containers.get(key)) {
            return Err(WatchRefusal::Taken { id: container.id.clone(), cgroup: watch.cgroup.clone() });
        }
        let mut changes = Vec::new();
        let adopted = self.tree.adopt(&cgroup, &mut changes);
        changes.into_iter().for_each(|change| self.apply(change));
        if !adopted {
            return Err(WatchRefusal::Full);
        }
        self.appear(&watch.id, &cgroup, Origin::Requested).ok_or(WatchRefusal::Full)
    }

    /// Ends what a ContainerWatch began. A container below the roots stays watched.
    fn unwatch(&mut self, id: &str) {
        let Some(key) = self.by_id.get(id).copied() else { return };
        let Some(container) = self.containers.get(&key).filter(|container| container.requested) else {
            return;
        };
        self.tree.forget(&container.cgroup);
        self.remove(key);
        self.evidence.remove(id);
        self.shared.with(|state| state.remove(id));
    }
}
