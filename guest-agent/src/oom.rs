//! OOM kills: the kernel's counter is what counts; its notices and its log say when to look and who it was.

use std::collections::BTreeSet;

use coroner_proto::agent::{Level, OomKill, Victim};
use protobuf::MessageField;
use tokio::time::Instant;

use crate::cgroup::{CounterError, Kills};
use crate::kmsg::Choice;
use crate::log::log;
use crate::shared::now;
use crate::watcher::{Container, OOM_EVENT, Watcher};

impl Watcher {
    /// Asks the kernel for a notice when memory runs out in a container.
    pub(crate) fn arm(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match self.hierarchy.oom_event(&container.cgroup) {
            Ok(Some(event)) => container.oom_event = Some(event),
            Ok(None) => return,
            Err(error) => {
                // Gone already, or no descriptor is left: the counter is still read at the end.
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

    /// The v1 notice: memory ran out here or above, or the cgroup goes away. Only the counter says which.
    pub(crate) fn memory_ran_out(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Some(event) = &container.oom_event {
            // It is level-triggered: what is not read comes again.
            rustix::io::read(event, &mut [0; 8]).ok();
        }
        if let Some(at) = container.kill_looks.begin(Instant::now()) {
            self.due.insert((at, key));
        }
        self.look_at_kills(key);
    }

    /// The kernel logs its choice just before it counts the kill, and that it killed just after: a look at either finds the
    /// counter before the victim's cgroup can be gone, where v1's notice alone may come a look too early.
    pub(crate) fn victim_chosen(&mut self) {
        let Some(kmsg) = &mut self.kmsg else { return };
        kmsg.drain();
        let cgroups: Vec<String> = kmsg.waiting().map(str::to_owned).collect();
        for key in cgroups.iter().filter_map(|cgroup| self.container_at(cgroup)).collect::<BTreeSet<_>>() {
            if let Some(container) = self.containers.get_mut(&key)
                && let Some(at) = container.kill_looks.begin(Instant::now())
            {
                self.due.insert((at, key));
            }
            self.look_at_kills(key);
        }
    }

    /// The v2 notice: a counter changed, most often one that is none of ours.
    pub(crate) fn counter_changed(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match container.notices.came(Instant::now()) {
            Ok(()) => drop(self.look_at_kills(key)),
            Err(at) => self.due.extend(at.map(|at| (at, key))),
        }
    }

    pub(crate) fn tend_notices(&mut self, key: u32, now: Instant) {
        if self.containers.get_mut(&key).is_some_and(|container| container.notices.due(now)) {
            self.look_at_kills(key);
        }
    }

    pub(crate) fn tend_kills(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        // Not ended by a rise: a second kill may have shared the first one's notice.
        let Some(next) = container.kill_looks.due(now) else { return };
        if let Some(at) = next {
            self.due.insert((at, key));
        }
        self.look_at_kills(key);
    }

    /// Reads a container's counter and tells its rise. The answer is why it cannot be read.
    pub(crate) fn look_at_kills(&mut self, key: u32) -> Option<String> {
        let container = self.containers.get_mut(&key)?;
        if container.gone {
            return Some("cgroup gone".to_owned());
        }
        let read = match self.hierarchy.kills(&container.cgroup) {
            Ok(read) => read,
            Err(error) => {
                // That a cgroup is gone is told with the exit.
                if error != CounterError::Gone && !std::mem::replace(&mut container.trouble_told, true) {
                    log!(Warn, "kill counter not read", container = container.id, error = error);
                }
                return Some(error.to_string());
            }
        };
        container.trouble_told = false;
        self.throttled(key, read.high);
        let container = self.containers.get_mut(&key)?;
        let Some(mut before) = container.kills.replace(read) else {
            // The first that could be read: what came before is not known to be new.
            let total = container.kills_earlier.saturating_add(read.total);
            self.shared.with(|state| state.set_baseline(&container.id, total));
            return None;
        };
        if read.total < before.total {
            // The kernel never counts back: this is another cgroup of the same name.
            container.kills_earlier = container.kills_earlier.saturating_add(before.total);
            before = Kills::default();
        }
        if read.total > before.total {
            self.tell_kill(key, before, read);
        } else if let Some(container) = self.containers.get_mut(&key) {
            // v2 counts that memory ran out before it counts the kill: what rose since the last kill belongs to the next.
            container.kills = Some(before);
        }
        None
    }

    fn tell_kill(&mut self, key: u32, before: Kills, read: Kills) {
        let Some(container) = self.containers.get(&key) else { return };
        let victim = self.kmsg.as_mut().and_then(|kmsg| {
            // The kernel logs its choice before it counts the kill: oom_kill_process.
            kmsg.drain();
            kmsg.take(&container.cgroup)
        });
        let memory = self.hierarchy.memory(&container.cgroup);
        // A group is killed one process at a time: what the counter reads meanwhile is the same OOM, of which all was told with the first.
        let same = read.ooms.is_some() && read.ooms == before.ooms;
        let earlier = container.told_kill.as_ref().filter(|_| same && victim.is_none());
        let mut kill = OomKill {
            total: container.kills_earlier.saturating_add(read.total),
            group: read.groups.map(|groups| groups > before.groups.unwrap_or(0)),
            level: level(&container.cgroup, victim.as_ref(), before, read).into(),
            cgroup: container.cgroup.to_string(),
            limit_bytes: memory.limit,
            usage_bytes: memory.usage,
            victim: MessageField::from_option(
                victim.map(|choice| told_as(choice, container, self.connector.is_some())),
            ),
            ..OomKill::default()
        };
        if let Some(earlier) = earlier {
            (kill.level, kill.victim) = (earlier.level, earlier.victim.clone());
            kill.group = kill.group.map(|group| group || earlier.group == Some(true));
        }
        if let Some(container) = self.containers.get_mut(&key) {
            container.told_kill = Some(Box::new(kill.clone()));
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

/// The kernel's log says whose limit it was; without it v2's counters tell the container from what is below it.
fn level(cgroup: &str, victim: Option<&Choice>, before: Kills, read: Kills) -> Level {
    let rose = |after: Option<u64>, before: Option<u64>| Some(after? > before.unwrap_or(0));
    match victim {
        Some(choice) => choice.level(cgroup),
        None => match (rose(read.own_ooms, before.own_ooms), rose(read.ooms, before.ooms)) {
            (Some(true), _) => Level::LEVEL_CONTAINER,
            (Some(false), Some(true)) => Level::LEVEL_CHILD,
            _ => Level::LEVEL_UNKNOWN,
        },
    }
}

/// `same_pids`: this process counts pids as the kernel's log does, which it does where process events come.
fn told_as(choice: Choice, container: &Container, same_pids: bool) -> Victim {
    let init = container.init.as_ref().filter(|_| same_pids);
    Victim {
        pid: choice.pid,
        comm: choice.comm,
        is_init: init.map(|init| init.pid == choice.pid),
        ..Victim::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_log_the_level_is_what_the_counters_say() {
        let kills = |ooms, own_ooms| Kills { total: 1, ooms, own_ooms, ..Kills::default() };
        let none = Kills::default();
        for (read, expect) in [
            (kills(Some(1), Some(1)), Level::LEVEL_CONTAINER),
            (kills(Some(1), Some(0)), Level::LEVEL_CHILD),
            // No limit at or below it was hit: above it, or the machine's.
            (kills(Some(0), Some(0)), Level::LEVEL_UNKNOWN),
            (kills(None, None), Level::LEVEL_UNKNOWN),
            (kills(Some(1), None), Level::LEVEL_UNKNOWN),
        ] {
            assert_eq!(level("/c", None, none, read), expect, "{read:?}");
        }
    }
}
