//! What the journal has of each source, and the handle that records the state of this run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use coroner_journal::{Cursor, Journal, RunningContainer};

/// Recovered state of all sources.
#[derive(Clone, Debug, Default)]
pub struct RecoveredSources {
    journal: Option<Journal>,
    cursors: Arc<HashMap<String, Cursor>>,
    running: Arc<Vec<RunningContainer>>,
    /// containerd's gRPC socket, which lists the tasks.
    containerd: Option<PathBuf>,
}

/// Recovered state of one source.
#[derive(Debug, Default)]
pub struct RecoveredSource {
    pub(super) journal: Option<Journal>,
    pub(super) cursor: Option<Cursor>,
    /// Containers that were running, and their OOM kill counters.
    pub(super) running: HashMap<String, Option<u64>>,
    pub(super) containerd: Option<PathBuf>,
    /// Running containers of wrapped shims.
    pub(super) shims: Vec<RunningContainer>,
}

/// The state when the router, or the agent, ran last.
#[derive(Debug)]
pub(super) struct LastKnown {
    /// Running containers, and their OOM kill counters.
    pub(super) running: HashMap<String, Option<u64>>,
    /// The agent has a new stream: it does not report again what happened in between.
    pub(super) other_stream: bool,
}

impl RecoveredSources {
    /// Takes the state that was read from the journal.
    pub fn new(
        journal: Option<Journal>,
        cursors: HashMap<String, Cursor>,
        running: Vec<RunningContainer>,
        containerd: Option<PathBuf>,
    ) -> Self {
        Self { journal, cursors: Arc::new(cursors), running: Arc::new(running), containerd }
    }

    /// Drops containers of sources that are not configured any more: their ends will never be
    /// reported.
    pub fn forget(&self, followed: impl Fn(&str) -> bool) {
        let Some(journal) = &self.journal else { return };
        for container in self.running.iter().filter(|it| !followed(&it.source)) {
            journal.gone(container.container.clone());
        }
    }

    /// The state of one source.
    pub fn of(&self, source: &str) -> RecoveredSource {
        let running = self.running.iter().filter(|it| it.source == source);
        let shims = running.clone().filter(|it| it.shim.is_some()).cloned().collect();
        RecoveredSource {
            journal: self.journal.clone(),
            cursor: self.cursors.get(source).cloned(),
            running: running.map(|it| (it.container.to_string(), it.kills_total)).collect(),
            containerd: self.containerd.clone(),
            shims,
        }
    }
}
