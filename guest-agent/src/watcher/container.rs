//! What the watcher keeps of one container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coroner_cgroup::poll_schedule::{NoticeSchedule, PollSchedule};
use coroner_proto::agent::OomKill;
use tokio::time::Instant;

use crate::cgroup::Kills;
use crate::memory_history::MemoryHistory;
use crate::shared_state::now;
use crate::watcher::exits::TrackedProcess;
use crate::watcher::pressure_reports::PressureState;

/// How long systemd may take to stop a container after an OOM kill in it. 1.2 s were seen.
const STOP_AFTER: Duration = Duration::from_secs(10);
const COUNTED_LATE: Duration = Duration::from_secs(1);

/// A container being watched.
#[derive(Debug)]
pub(crate) struct WatchedContainer {
    pub(crate) id: String,
    pub(crate) cgroup: Arc<str>,
    /// A reader requested it: it may not be below the roots.
    pub(crate) requested: bool,
    /// The counters as last read; none before the first successful read.
    pub(crate) kills: Option<Kills>,
    /// Kills of earlier cgroups of this container: a new cgroup counts from zero.
    pub(crate) kills_earlier: u64,
    pub(crate) read_error_logged: bool,
    /// The last kill that was recorded: the kill of a group takes several reads.
    pub(crate) last_kill: Option<Box<OomKill>>,
    /// When that was, on the boot clock.
    pub(crate) last_kill_at: Duration,
    /// What systemd-oomd had counted when the container appeared.
    pub(crate) oomd_before: u64,
    /// When systemd sent its init a first signal, on the boot clock.
    pub(crate) stopped_at: Option<Duration>,
    pub(crate) oom_event: Option<OwnedFd>,
    pub(crate) kill_polls: PollSchedule,
    pub(crate) notices: NoticeSchedule,
    pub(crate) init_polls: PollSchedule,
    pub(crate) init: Option<TrackedProcess>,
    /// The pid of the init while its exit is recorded, and after it.
    pub(crate) ended_init: Option<u32>,
    pub(crate) execs: BTreeMap<String, TrackedProcess>,
    pub(crate) pressure: PressureState,
    pub(crate) memory: MemoryHistory,
    /// A process was seen in it.
    pub(crate) populated: bool,
    /// Since when no process is in it.
    pub(crate) emptied: Option<Instant>,
    /// Its cgroup was removed; it stays until the exits of its processes are recorded.
    pub(crate) gone: bool,
}

/// How a container was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It existed when the agent started.
    Earlier,
    /// Its cgroup was created just now, so its counter began at zero.
    Now,
    /// A reader requested it.
    Requested,
}

impl WatchedContainer {
    pub(crate) fn new(id: &str, cgroup: &Arc<str>) -> Self {
        Self {
            id: id.to_owned(),
            cgroup: Arc::clone(cgroup),
            requested: false,
            kills: None,
            kills_earlier: 0,
            read_error_logged: false,
            last_kill: None,
            last_kill_at: Duration::ZERO,
            oomd_before: 0,
            stopped_at: None,
            oom_event: None,
            kill_polls: PollSchedule::kills(),
            notices: NoticeSchedule::default(),
            init_polls: PollSchedule::init(),
            init: None,
            ended_init: None,
            execs: BTreeMap::new(),
            pressure: PressureState::default(),
            memory: MemoryHistory::default(),
            populated: false,
            emptied: None,
            gone: false,
        }
    }

    /// Keeps the last kill that was recorded.
    pub(crate) fn killed(&mut self, kill: &OomKill) {
        self.last_kill = Some(Box::new(kill.clone()));
        self.last_kill_at = Duration::from_nanos(now().boot_ns);
    }

    /// Whether systemd began to stop it just after an OOM kill: `OOMPolicy=stop`. Both read the
    /// same notice, so the kill may be counted here a moment later.
    pub(crate) fn is_stop_after_kill(&self) -> bool {
        self.last_kill.is_some() && self.stopped_at.is_some_and(|stop| is_just_after(stop, self.last_kill_at))
    }
}

fn is_just_after(stop: Duration, kill: Duration) -> bool {
    stop + COUNTED_LATE >= kill && stop <= kill + STOP_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_belongs_to_a_kill_just_before_it() {
        for (stop, kill, expect) in [
            (20_000, 18_800, true),
            // The counter was read after the signal.
            (20_000, 20_010, true),
            (20_000, 9_000, false),
            (20_000, 22_000, false),
        ] {
            let [stop, kill] = [stop, kill].map(Duration::from_millis);
            assert_eq!(is_just_after(stop, kill), expect, "{stop:?} {kill:?}");
        }
    }
}
