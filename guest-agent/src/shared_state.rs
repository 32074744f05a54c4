//! The state, shared by the watcher (writes) and the servers (read). Its lock is never held over an
//! await.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::state::{State, Timestamp};

/// How far readers can read, and whether the agent is stopping.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) seq: u64,
    pub(crate) appeared: u64,
    pub(crate) stopping: bool,
}

/// The state, and a channel that announces changes.
#[derive(Debug)]
pub(crate) struct SharedState {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

impl SharedState {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), progress: watch::Sender::new(Progress::default()) }
    }

    /// Changes or reads the state, then wakes waiting readers if it changed.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A poisoned lock is used: every change is a few assignments, so the state is consistent.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut state);
        let now = (state.seq(), state.appeared());
        drop(state);
        self.progress.send_if_modified(|progress| {
            let before = (progress.seq, progress.appeared);
            (progress.seq, progress.appeared) = now;
            before != now
        });
        answer
    }

    /// Ends all waiting calls.
    pub(crate) fn stop(&self) {
        self.progress.send_modify(|progress| progress.stopping = true);
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// Now, by the boot clock and the wall clock.
pub(crate) fn now() -> Timestamp {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let part = |seconds: i64, nanoseconds: i64, unit: u64, nano_per_unit: u64| {
        let (seconds, nanoseconds) =
            (u64::try_from(seconds).unwrap_or(0), u64::try_from(nanoseconds).unwrap_or(0));
        seconds.saturating_mul(unit).saturating_add(nanoseconds / nano_per_unit)
    };
    Timestamp {
        boot_ns: part(boot.tv_sec, boot.tv_nsec, 1_000_000_000, 1),
        wall_ms: part(wall.tv_sec, wall.tv_nsec, 1000, 1_000_000),
    }
}
