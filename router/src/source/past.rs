//! What an earlier run of the router knew of each source, and where this one writes down what it knows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::journal::{Cursor, Journal, Lives};

/// Of every source.
#[derive(Clone, Debug, Default)]
pub struct Past {
    journal: Option<Journal>,
    cursors: Arc<HashMap<String, Cursor>>,
    lives: Arc<Vec<Lives>>,
    /// containerd's gRPC socket, where it is known which tasks there are.
    containerd: Option<PathBuf>,
}

/// Of one source.
#[derive(Debug, Default)]
pub struct History {
    pub(super) journal: Option<Journal>,
    pub(super) cursor: Option<Cursor>,
    /// Containers that lived, and their counters of OOM kills.
    pub(super) lives: HashMap<String, Option<u64>>,
    pub(super) containerd: Option<PathBuf>,
    /// Those of wrapped shims.
    pub(super) shims: Vec<Lives>,
}

impl Past {
    /// What was read from the journal.
    pub fn new(
        journal: Option<Journal>,
        cursors: HashMap<String, Cursor>,
        lives: Vec<Lives>,
        containerd: Option<PathBuf>,
    ) -> Self {
        Self { journal, cursors: Arc::new(cursors), lives: Arc::new(lives), containerd }
    }

    /// Lets go of containers of sources that nobody follows any more: no agent will ever tell their ends.
    pub fn forget(&self, followed: impl Fn(&str) -> bool) {
        let Some(journal) = &self.journal else { return };
        for lives in self.lives.iter().filter(|it| !followed(&it.source)) {
            journal.gone(lives.container.clone());
        }
    }

    /// Of this source.
    pub fn of(&self, source: &str) -> History {
        let lives = self.lives.iter().filter(|it| it.source == source);
        let shims = lives.clone().filter(|it| it.shim.is_some()).cloned().collect();
        History {
            journal: self.journal.clone(),
            cursor: self.cursors.get(source).cloned(),
            lives: lives.map(|it| (it.container.to_string(), it.kills_total)).collect(),
            containerd: self.containerd.clone(),
            shims,
        }
    }
}
