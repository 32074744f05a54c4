//! OOM kills: the kernel's counter is authoritative; its notices trigger a read, its log names the
//! victim. Where a cgroup was removed before its counter was read, the log is the witness.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use coroner_proto::agent::{Level, OomKill, Victim, Witness};
use protobuf::MessageField;
use tokio::time::Instant;

use crate::cgroup::{CounterError, Kills, LimitHit};
use crate::kmsg::OomRecord;
use crate::log::log;
use crate::process;
use crate::shared_state::now;
use crate::watcher::{OOM_EVENT, WatchedContainer, Watcher};

impl Watcher {
    /// Registers for the kernel's notice that memory ran out in a container.
    pub(crate) fn register_oom_event(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match self.hierarchy.oom_event(&container.cgroup) {
            Ok(Some(event)) => container.oom_event = Some(event),
            Ok(None) => return,
            Err(error) => {
                // The cgroup is gone, or no descriptor is left: the counter is still read at the
                // exit.
                log!(Debug, "no OOM notice", container = container.id, error = error);
                return;
            }
        }
        let event = self.containers.get(&key).and_then(|container| container.oom_event.as_ref());
        if let Some(event) = event
            && let Err(error) = self.listen(event, OOM_EVENT | u64::from(key))
        {
            log!(Error, "cannot wait for OOM notices", error = error);
        }
    }

    /// The v1 notice: memory ran out here or above, or the cgroup is removed. Only the counter
    /// shows which.
    pub(crate) fn memory_ran_out(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Some(event) = &container.oom_event {
            // It is level-triggered: an event that is not read is reported again.
            rustix::io::read(event, &mut [0; 8]).ok();
        }
        if let Some(at) = container.kill_polls.begin(Instant::now()) {
            self.due.insert((at, key));
        }
        self.poll_kills(key);
    }

    /// The kernel logs its victim just before it counts the kill, and the kill itself just after: a
    /// read after either record is before the victim's cgroup can be gone. v1's notice alone may
    /// come too early.
    pub(crate) fn victim_chosen(&mut self) {
        let Some(kmsg) = &mut self.kmsg else { return };
        kmsg.drain();
        let cgroups: Vec<String> = kmsg.unclaimed_cgroups().map(str::to_owned).collect();
        for key in cgroups.iter().filter_map(|cgroup| self.container_at(cgroup)).collect::<BTreeSet<_>>() {
            if let Some(container) = self.containers.get_mut(&key)
                && let Some(at) = container.kill_polls.begin(Instant::now())
            {
                self.due.insert((at, key));
            }
            self.poll_kills(key);
        }
    }

    /// The v2 notice: a counter changed, most often one that is not needed here.
    pub(crate) fn counter_changed(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match container.notices.notified(Instant::now()) {
            Ok(()) => drop(self.poll_kills(key)),
            Err(at) => self.due.extend(at.map(|at| (at, key))),
        }
    }

    pub(crate) fn poll_due_notices(&mut self, key: u32, now: Instant) {
        if self.containers.get_mut(&key).is_some_and(|container| container.notices.due(now)) {
            self.poll_kills(key);
        }
    }

    pub(crate) fn poll_due_kills(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        // The polls go on after a rise: a second kill may have shared the first one's notice.
        let Some(next) = container.kill_polls.due(now) else { return };
        if let Some(at) = next {
            self.due.insert((at, key));
        }
        let unread = self.poll_kills(key);
        if next.is_none()
            && unread.is_none()
            && let (Some(kmsg), Some(container)) = (&mut self.kmsg, self.containers.get(&key))
        {
            // Its counter did not rise by them: they are not kills.
            kmsg.claim(&container.cgroup);
        }
    }

    /// Reads a container's counter and records its rise. Returns why it cannot be read.
    pub(crate) fn poll_kills(&mut self, key: u32) -> Option<String> {
        let container = self.containers.get_mut(&key)?;
        let read =
            if container.gone { Err(CounterError::Gone) } else { self.hierarchy.kills(&container.cgroup) };
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // A cgroup that is gone is reported with the exit.
                if error == CounterError::Gone {
                    self.count_from_log(key);
                } else if !std::mem::replace(&mut container.read_error_logged, true) {
                    log!(Warn, "kill counter not read", container = container.id, error = error);
                }
                return Some(error.to_string());
            }
        };
        container.read_error_logged = false;
        self.throttled(key, read.high);
        let container = self.containers.get_mut(&key)?;
        let Some(mut before) = container.kills.replace(read) else {
            // The first value that could be read: kills up to it may be older than the agent.
            let total = container.kills_earlier.saturating_add(read.total);
            self.shared.with(|state| state.set_baseline(&container.id, total));
            return None;
        };
        if read.total < before.total {
            // The kernel never decreases the counter: this is another cgroup of the same name.
            container.kills_earlier = container.kills_earlier.saturating_add(before.total);
            before = Kills::default();
        }
        if read.total > before.total {
            self.record_kill(key, before, read);
        } else if let Some(container) = self.containers.get_mut(&key) {
            // v2 counts that memory ran out before it counts the kill: what rose since the last
            // kill belongs to the next.
            container.kills = Some(before);
        }
        None
    }

    /// Records the kills of a removed cgroup that only the kernel's log has: systemd and runc
    /// remove a cgroup within milliseconds of its last process.
    fn count_from_log(&mut self, key: u32) {
        let Some(kmsg) = &mut self.kmsg else { return };
        let Some(container) = self.containers.get(&key) else { return };
        kmsg.drain();
        // A kill that was counted has claimed its record.
        let Some((record, count)) = kmsg.claim(&container.cgroup) else { return };
        let kill = OomKill {
            level: record.level(&container.cgroup).into(),
            cgroup: container.cgroup.to_string(),
            victim: MessageField::some(victim_of(record, container, self.connector.is_some())),
            ..OomKill::default()
        };
        self.record_logged(key, kill, count);
    }

    /// Counts the kill of an init that the kernel's log names by its pid alone, after its cgroup
    /// was removed: of more than ten kills in five seconds the kernel logs no cgroups.
    pub(crate) fn count_killed_init(&mut self, key: u32, pid: u32, code: Option<u32>) {
        // The OOM killer ends a process by SIGKILL.
        if code.is_some_and(|code| code & 0x7f != 9) {
            return;
        }
        let same_pids = self.connector.is_some();
        let Some(kmsg) = self.kmsg.as_mut().filter(|_| same_pids) else { return };
        let Some(container) = self.containers.get(&key) else { return };
        let Some(comm) = kmsg.claim_pid(pid) else { return };
        // A kill that was counted may be this one.
        if container.last_kill.is_none() {
            let victim = Victim { pid, comm, is_init: Some(true), ..Victim::default() };
            let kill = OomKill {
                cgroup: container.cgroup.to_string(),
                victim: MessageField::some(victim),
                ..OomKill::default()
            };
            self.record_logged(key, kill, 1);
        }
    }

    /// Drops the kernel's line with the pid of a process that lives: it is about an earlier one.
    pub(crate) fn forget_killed(&mut self, pid: u32, handle: &OwnedFd) {
        if let Some(kmsg) = self.kmsg.as_mut().filter(|_| !process::has_ended(handle)) {
            kmsg.drain();
            // The process may have been killed since the test above.
            if !process::has_ended(handle) {
                kmsg.claim_pid(pid);
            }
        }
    }

    /// Records `count` kills that the kernel's log is the witness of.
    fn record_logged(&mut self, key: u32, kill: OomKill, count: u64) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let counted = container.kills.get_or_insert_default();
        counted.total = counted.total.saturating_add(count);
        let total = container.kills_earlier.saturating_add(counted.total);
        log!(Debug, "OOM kill by the kernel's log", container = container.id, total = total);
        let witness = Witness::WITNESS_KERNEL_LOG.into();
        let kill = OomKill { total, witness, ..kill };
        container.last_kill = Some(Box::new(kill.clone()));
        self.shared.with(|state| state.kill(&container.id, kill, now()));
    }

    fn record_kill(&mut self, key: u32, before: Kills, read: Kills) {
        let Some(container) = self.containers.get(&key) else { return };
        let victim = self.kmsg.as_mut().and_then(|kmsg| {
            // The kernel logs its victim before it counts the kill: oom_kill_process.
            kmsg.drain();
            kmsg.claim(&container.cgroup).map(|(latest, _)| latest)
        });
        let memory = self.hierarchy.memory(&container.cgroup);
        // A group is killed one process at a time: a rise meanwhile belongs to the same OOM, so
        // level and victim are those of its first report.
        let same = read.ooms.is_some() && read.ooms == before.ooms;
        let earlier = container.last_kill.as_ref().filter(|_| same && victim.is_none());
        let mut kill = OomKill {
            total: container.kills_earlier.saturating_add(read.total),
            group: read.groups.map(|groups| groups > before.groups.unwrap_or(0)),
            level: level(&container.cgroup, victim.as_ref(), before, read).into(),
            cgroup: container.cgroup.to_string(),
            limit_bytes: memory.limit,
            usage_bytes: memory.usage,
            groups: read.groups,
            victim: MessageField::from_option(
                victim.map(|choice| victim_of(choice, container, self.connector.is_some())),
            ),
            ..OomKill::default()
        };
        if let Some(earlier) = earlier {
            (kill.level, kill.victim) = (earlier.level, earlier.victim.clone());
            kill.group = kill.group.map(|group| group || earlier.group == Some(true));
        }
        if let Some(container) = self.containers.get_mut(&key) {
            container.last_kill = Some(Box::new(kill.clone()));
        }
        let Some(container) = self.containers.get(&key) else { return };
        log!(Debug, "OOM kill", container = container.id, total = kill.total);
        self.shared.with(|state| {
            state.set_limit(&container.id, memory.limit);
            state.kill(&container.id, kill, now());
        });
    }

    pub(crate) fn read_limit(&mut self, key: u32) {
        let Some(container) = self.containers.get(&key) else { return };
        let memory = self.hierarchy.memory(&container.cgroup);
        self.shared.with(|state| state.set_limit(&container.id, memory.limit));
    }
}

/// The kernel's log names the cgroup that hit its limit. Without it, v2's counters distinguish the
/// container's own limit from one below it.
fn level(cgroup: &str, victim: Option<&OomRecord>, before: Kills, read: Kills) -> Level {
    match victim {
        Some(choice) => choice.level(cgroup),
        None => match read.limit_hit_since(before) {
            LimitHit::Own => Level::LEVEL_CONTAINER,
            LimitHit::Below => Level::LEVEL_CHILD,
            LimitHit::Unknown => Level::LEVEL_UNKNOWN,
        },
    }
}

/// `same_pids`: the agent's pids are those of the kernel's log, as in the initial pid namespace.
fn victim_of(choice: OomRecord, container: &WatchedContainer, same_pids: bool) -> Victim {
    let init = container.init.as_ref().map(|init| init.pid).or(container.ended_init);
    Victim {
        pid: choice.pid,
        comm: choice.comm,
        is_init: init.filter(|_| same_pids).map(|init| init == choice.pid),
        ..Victim::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_without_log_follows_counters() {
        let kills = |ooms, own_ooms| Kills { total: 1, ooms, own_ooms, ..Kills::default() };
        let none = Kills::default();
        for (read, expect) in [
            (kills(Some(1), Some(1)), Level::LEVEL_CONTAINER),
            (kills(Some(1), Some(0)), Level::LEVEL_CHILD),
            // No limit at or below the container was hit: it was one above it, or the machine's.
            (kills(Some(0), Some(0)), Level::LEVEL_UNKNOWN),
            (kills(None, None), Level::LEVEL_UNKNOWN),
            (kills(Some(1), None), Level::LEVEL_UNKNOWN),
        ] {
            assert_eq!(level("/c", None, none, read), expect, "{read:?}");
        }
    }
}
