//! What the watcher writes and the server reads: the state behind a lock that is never held over an await.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::state::{Moment, State};

/// How far readers may read, and whether the agent is stopping.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) seq: u64,
    pub(crate) appeared: u64,
    pub(crate) stopping: bool,
}

/// The state and the news of it.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    told: watch::Sender<Told>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), told: watch::Sender::new(Told::default()) }
    }

    /// Changes or reads the state, then wakes whoever waits for a change.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A panic while it was held left a whole state: every change to it is a few assignments.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut state);
        let now = (state.seq(), state.appeared());
        drop(state);
        self.told.send_if_modified(|told| {
            let before = (told.seq, told.appeared);
            (told.seq, told.appeared) = now;
            before != now
        });
        answer
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        self.told.send_modify(|told| told.stopping = true);
    }

    pub(crate) fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }
}

/// Now, by both clocks.
pub(crate) fn now() -> Moment {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let part = |seconds: i64, nanoseconds: i64, unit: u64, nano_per_unit: u64| {
        let (seconds, nanoseconds) =
            (u64::try_from(seconds).unwrap_or(0), u64::try_from(nanoseconds).unwrap_or(0));
        seconds.saturating_mul(unit).saturating_add(nanoseconds / nano_per_unit)
    };
    Moment {
        boot_ns: part(boot.tv_sec, boot.tv_nsec, 1_000_000_000, 1),
        wall_ms: part(wall.tv_sec, wall.tv_nsec, 1000, 1_000_000),
    }
}
