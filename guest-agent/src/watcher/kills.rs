//! OOM kills: the kernel's counter is authoritative; its notices trigger a read, its log names the
//! victim. Where a cgroup was removed before its counter was read, the log is the witness, and
//! where the log has nothing, the trace.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coroner_proto::agent::{Level, OomKill, Victim, Witness};
use protobuf::MessageField;
use tokio::time::Instant;

use crate::cgroup::{CounterError, Kills, LimitHit};
use crate::evidence::ReportSource;
use crate::kmsg::OomRecord;
use crate::log::log;
use crate::process;
use crate::shared_state::now;
use crate::watcher::{OOM_EVENT, WatchedContainer, Watcher, wait_status};

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
        self.check_memory_of(key);
    }

    /// The kernel logs its victim just before it counts the kill, and the kill itself just after: a
    /// read after either record is before the victim's cgroup can be gone. v1's notice alone may
    /// come too early.
    pub(crate) fn victim_chosen(&mut self) {
        let Some(kmsg) = &mut self.kmsg else { return };
        kmsg.drain();
        let cgroups: Vec<String> = kmsg.unclaimed_cgroups().map(str::to_owned).collect();
        self.poll_victims(&cgroups);
    }

    /// Reads the marks of the trace since the last call. A process that is tracked may have ended.
    pub(crate) fn drain_trace(&mut self) {
        let Some(trace) = &mut self.oom_trace else { return };
        let (by_pid, containers, hierarchy) = (&self.by_pid, &self.containers, &self.hierarchy);
        trace.drain(|pid, is_fresh| {
            let tracked = by_pid.get(&pid).and_then(|(key, _)| containers.get(key));
            let tracked = tracked.map(|container| container.cgroup.to_string());
            tracked.or_else(|| hierarchy.cgroup_of(pid).filter(|_| is_fresh))
        });
    }

    /// A mark comes just after its counter rose.
    pub(crate) fn poll_marked(&mut self) {
        if let Some(trace) = &mut self.oom_trace {
            let cgroups = trace.take_marked();
            self.poll_victims(&cgroups);
        }
    }

    fn poll_victims(&mut self, cgroups: &[String]) {
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
            Ok(()) => {
                self.poll_kills(key);
                self.check_memory_of(key);
            }
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
            && let Some(container) = self.containers.get(&key)
        {
            // Its counter did not rise by them: they are not kills.
            let cgroup = Arc::clone(&container.cgroup);
            self.forget_victims(&cgroup);
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
        self.drain_trace();
        let Some(container) = self.containers.get(&key) else { return };
        let cgroup = &container.cgroup;
        let marked = self.oom_trace.as_mut().and_then(|trace| trace.claim(cgroup));
        let logged = self.kmsg.as_mut().and_then(|kmsg| {
            kmsg.drain();
            // A kill that was counted has claimed its record.
            kmsg.claim(cgroup)
        });
        let kill = OomKill { cgroup: cgroup.to_string(), ..OomKill::default() };
        if let Some((record, count)) = logged {
            let level = record.level(cgroup).into();
            let source = ReportSource::of(Some(&record), None, false);
            let mut kill = OomKill { level, ..kill };
            self.name_limit(&mut kill, Some(&record));
            let victim = victim_of(record.pid, record.comm, container, self.connector.is_some());
            kill.victim = MessageField::some(victim);
            self.record_witnessed(key, kill, count, Witness::WITNESS_KERNEL_LOG, source);
        } else if let Some((mark, kills)) = marked
            // A mark may come after the counter of its kill was read.
            && container.last_kill.is_none()
        {
            let source = ReportSource::of(None, Some(mark.pid), false);
            let victim = victim_of(mark.pid, mark.comm, container, self.connector.is_some());
            let kill = OomKill { victim: MessageField::some(victim), ..kill };
            self.record_witnessed(key, kill, kills, Witness::WITNESS_TRACE, source);
        }
    }

    /// Drops what the kernel's log and the trace have of a cgroup.
    pub(crate) fn forget_victims(&mut self, cgroup: &str) {
        if let Some(kmsg) = &mut self.kmsg {
            kmsg.claim(cgroup);
        }
        if let Some(trace) = &mut self.oom_trace {
            trace.claim(cgroup);
        }
    }

    /// Counts the kill of an init that the kernel's log names by its pid alone, after its cgroup
    /// was removed: of more than ten kills in five seconds the kernel logs no cgroups.
    pub(crate) fn count_killed_init(&mut self, key: u32, pid: u32, code: Option<u32>) {
        // The OOM killer ends a process by SIGKILL.
        if code.is_some_and(|code| wait_status::signal(code) != 9) {
            return;
        }
        let same_pids = self.connector.is_some();
        let Some(kmsg) = self.kmsg.as_mut().filter(|_| same_pids) else { return };
        let Some(container) = self.containers.get(&key) else { return };
        let Some(memory) = kmsg.claim_pid(pid) else { return };
        // A kill that was counted may be this one.
        if container.last_kill.is_none() {
            let comm = memory.comm.clone();
            let victim = Victim { pid, comm, is_init: Some(true), ..Victim::default() };
            let kill = OomKill {
                cgroup: container.cgroup.to_string(),
                victim: MessageField::some(victim),
                ..OomKill::default()
            };
            let source = ReportSource::Victim(Box::new(memory));
            self.record_witnessed(key, kill, 1, Witness::WITNESS_KERNEL_LOG, source);
        }
    }

    /// Drops what the kernel's log and the trace have of the pid of a process that lives: it is
    /// about an earlier one.
    pub(crate) fn forget_killed(&mut self, pid: u32, handle: &OwnedFd) {
        if process::has_ended(handle) {
            return;
        }
        self.drain_trace();
        if let Some(kmsg) = &mut self.kmsg {
            kmsg.drain();
        }
        // The process may have been killed since the test above.
        if !process::has_ended(handle) {
            self.take_victim(pid);
            if let Some(kmsg) = &mut self.kmsg {
                kmsg.claim_pid(pid);
            }
        }
    }

    /// Records `count` kills that another witness than the counter has.
    fn record_witnessed(
        &mut self,
        key: u32,
        kill: OomKill,
        count: u64,
        witness: Witness,
        source: ReportSource,
    ) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let counted = container.kills.get_or_insert_default();
        counted.total = counted.total.saturating_add(count);
        let total = container.kills_earlier.saturating_add(counted.total);
        log!(Debug, "OOM kill without a counter", container = container.id, total = total);
        self.record(key, OomKill { total, witness: witness.into(), ..kill }, source);
    }

    fn record(&mut self, key: u32, kill: OomKill, source: ReportSource) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.killed(&kill);
        let seq = self.shared.with(|state| {
            state.kill(&container.id, kill.clone(), now());
            state.seq()
        });
        self.expect_evidence(key, &kill, seq, source);
    }

    fn record_kill(&mut self, key: u32, before: Kills, read: Kills) {
        self.drain_trace();
        let Some(container) = self.containers.get(&key) else { return };
        let marked = self.oom_trace.as_mut().and_then(|trace| trace.claim(&container.cgroup));
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
        let marked_pid = marked.as_ref().map(|(mark, _)| mark.pid);
        let source = ReportSource::of(victim.as_ref(), marked_pid, earlier.is_some());
        let mut kill = OomKill {
            total: container.kills_earlier.saturating_add(read.total),
            group: read.groups.map(|groups| groups > before.groups.unwrap_or(0)),
            level: level(&container.cgroup, victim.as_ref(), before, read).into(),
            cgroup: container.cgroup.to_string(),
            limit_bytes: memory.limit,
            usage_bytes: memory.usage,
            groups: read.groups,
            ..OomKill::default()
        };
        self.name_limit(&mut kill, victim.as_ref());
        let named = match (victim, marked) {
            (Some(record), _) => Some((record.pid, record.comm)),
            // The kernel's log is rate-limited.
            (None, Some((mark, _))) => Some((mark.pid, mark.comm)),
            (None, None) => None,
        };
        kill.victim = MessageField::from_option(
            named.map(|(pid, comm)| victim_of(pid, comm, container, self.connector.is_some())),
        );
        if let Some(earlier) = earlier {
            kill.level = earlier.level;
            kill.limit_cgroup = earlier.limit_cgroup.clone();
            kill.limit_cgroup_bytes = earlier.limit_cgroup_bytes;
            if earlier.victim.is_some() {
                kill.victim = earlier.victim.clone();
            }
            kill.group = kill.group.map(|group| group || earlier.group == Some(true));
        }
        log!(Debug, "OOM kill", container = container.id, total = kill.total);
        self.read_limit(key);
        self.record(key, kill, source);
    }

    /// Sets the cgroup that hit its limit, and that limit. The kernel prints it; it may have been
    /// changed since.
    fn name_limit(&self, kill: &mut OomKill, record: Option<&OomRecord>) {
        let Some(record) = record else {
            // v2 counts how often each cgroup's own limit was hit.
            if kill.level == Level::LEVEL_CONTAINER.into() {
                (kill.limit_cgroup, kill.limit_cgroup_bytes) = (kill.cgroup.clone(), kill.limit_bytes);
            }
            return;
        };
        kill.limit_cgroup = record.limit_cgroup().to_owned();
        let printed = self.kmsg.as_ref().and_then(|kmsg| kmsg.reports.memory_limit(record.report));
        kill.limit_cgroup_bytes = printed.or_else(|| self.hierarchy.memory(&kill.limit_cgroup).limit);
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
fn victim_of(pid: u32, comm: String, container: &WatchedContainer, same_pids: bool) -> Victim {
    let init = container.init.as_ref().map(|init| init.pid).or(container.ended_init);
    Victim { pid, comm, is_init: init.filter(|_| same_pids).map(|init| init == pid), ..Victim::default() }
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
