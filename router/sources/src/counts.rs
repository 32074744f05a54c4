//! The counters of one source, and the state of its link.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use coroner_core::count::Count;
use serde::{Deserialize, Serialize};

/// Counters and link state of one source.
#[derive(Debug, Default)]
pub struct SourceCounts {
    /// Signals sent to the intake.
    pub signals: Count,
    /// Signals that the agent dropped before they were read.
    pub lost: Count,
    /// Signals that could not be decoded.
    pub refused: Count,
    /// Links that came up.
    pub links: Count,
    /// Pressure signals of a guest that were dropped by the rate limit.
    pub held_back: Count,
    /// Links that are up: 0 or 1.
    up: AtomicI64,
    /// The guest is gone for good.
    gone: AtomicBool,
    /// Number of containers that it reports on.
    containers: AtomicU64,
    /// Error that ended the last link.
    problem: Mutex<Option<String>>,
}

impl SourceCounts {
    /// Records whether the link is up.
    pub fn connected(&self, up: bool) {
        self.up.store(i64::from(up), Ordering::Relaxed);
    }

    /// Records whether the guest is gone for good.
    pub fn lost_for_good(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Records the number of containers that it reports on.
    pub fn set_containers(&self, containers: usize) {
        self.containers.store(containers as u64, Ordering::Relaxed);
    }

    /// Number of containers that it reports on.
    pub fn containers(&self) -> u64 {
        self.containers.load(Ordering::Relaxed)
    }

    /// Records why the link ended; `None`: it is up again.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Error that ended the last link.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state of its link.
    pub fn state(&self) -> LinkState {
        match self.links.get() {
            _ if self.gone.load(Ordering::Relaxed) => LinkState::Lost,
            _ if self.is_connected() => LinkState::Up,
            0 => LinkState::Connecting,
            _ => LinkState::Down,
        }
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.up.load(Ordering::Relaxed) > 0
    }
}

/// The state of a guest's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// No connection was made yet.
    Connecting,
    /// The agent is connected.
    Up,
    /// The connection ended; the router reconnects.
    Down,
    /// The guest is gone for good.
    Lost,
}

impl LinkState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Connecting, Self::Up, Self::Down, Self::Lost];

    /// As status and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
            Self::Lost => "lost",
        }
    }
}
