//! The case file: what the router knows of a container, so that policies need no memory.

use serde::{Deserialize, Serialize};

use crate::mode::Known;
use crate::ruling::Action;
use crate::signal::{Event, Exited, GuestLost, KillRequest, Level, Moment, OomKilled, Pressure, Signal};

/// Kill requests kept. A pod that ignores SIGTERM is signalled for as long as it runs; without a
/// bound its case would grow with each one.
const REQUESTS: usize = 16;
/// Memory limits kept. An autoscaler resizes a pod for as long as it runs.
const LIMITS: usize = 8;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// What the router knows of one container from the signals before the current one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Case {
    /// Sorted, without duplicates.
    pub known: Vec<Known>,
    /// When the container started.
    pub started: Option<Moment>,
    /// The memory limit in bytes, as last read.
    pub memory_limit: Option<u64>,
    /// Limits as they were read, oldest first; empty: none was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<(Moment, u64)>,
    /// Memory usage in bytes, at the last report.
    pub memory_last: Option<u64>,
    /// Kills seen; `None` where they are not counted.
    pub kills: Option<u64>,
    /// The first kill seen.
    pub first_kill: Option<Moment>,
    /// The last kill seen.
    pub last_kill: Option<(Moment, OomKilled)>,
    /// The last 16; `None` where they are not seen.
    pub requests: Option<Vec<(Moment, KillRequest)>>,
    /// The last pressure seen.
    pub last_pressure: Option<(Moment, Pressure)>,
    /// The init's exit.
    pub exit: Option<Exited>,
    /// When its guest was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_lost: Option<(Moment, GuestLost)>,
    /// A task-oom was ruled before.
    pub oom_sent: bool,
    /// A task-exit was ruled before.
    pub exit_sent: bool,
    /// Attributes from the shim at the container's creation, sorted by key.
    pub attributes: Vec<(String, String)>,
}

/// How long after the last one a rise of the counter can belong to the same OOM kill. The kernel
/// kills a group within milliseconds; a busy node reads its counters late.
const STEP_MS: u64 = 1_000;
/// Two sources report one kill within this time, on a node that has no processor left for one.
const NEAR_MS: u64 = 5000;

impl Case {
    /// The case of a container before its first signal.
    pub fn new(known: &[Known]) -> Self {
        let mut case = Self::default();
        case.set_known(known);
        case
    }

    /// Whether the source and mode of this container allow `what`.
    pub fn knows(&self, what: Known) -> bool {
        self.known.contains(&what)
    }

    /// Adds what a reporter of the container can know, and replaces what a ruling can change. After
    /// this an empty list of requests means that none were made. A number of kills that was not
    /// known at the exit stays unknown.
    pub fn set_known(&mut self, known: &[Known]) {
        let uncounted = self.exit.is_some() && !self.knows(Known::KillCount);
        self.known.retain(|it| !it.is_writable());
        self.known.extend(known.iter().filter(|it| !uncounted || **it != Known::KillCount));
        self.known.sort_unstable();
        self.known.dedup();
        self.kills = self.knows(Known::KillCount).then(|| self.kills.unwrap_or(0));
        self.requests = self.knows(Known::KillRequests).then(|| self.requests.take().unwrap_or_default());
    }

    /// The last read of the counter failed, and no witness has a kill: their number is unknown.
    pub fn forget_kill_count(&mut self) {
        if self.kills == Some(0) {
            self.kills = None;
            self.known.retain(|it| *it != Known::KillCount);
        }
    }

    /// Adds a signal and its ruling, for later signals.
    pub fn update(&mut self, signal: &Signal, actions: &[Action]) {
        match &signal.event {
            Event::OomKill(kill) => self.learn_kill(signal.at, kill),
            Event::Exited(_) => self.exit = signal.exit_of_init().cloned().or_else(|| self.exit.take()),
            Event::Pressure(pressure) => self.last_pressure = Some((signal.at, *pressure)),
            // A signal to an exec, for example a slow probe, is not a signal to the container.
            Event::KillRequest(_) if signal.target.exec_id.is_some() => {}
            Event::KillRequest(request) => {
                if let Some(requests) = &mut self.requests {
                    if requests.len() == REQUESTS {
                        requests.remove(0);
                    }
                    requests.push((signal.at, *request));
                }
            }
            // A container's creation, with its shim's attributes.
            Event::Forwarded(_) => self.describe(&signal.attributes),
            Event::GuestLost(lost) => self.guest_lost = Some((signal.at, lost.clone())),
            Event::Evidence(_) | Event::Other(_) => {}
        }
        for action in actions {
            match action {
                Action::TaskOom => self.oom_sent = true,
                Action::TaskExit(_) => self.exit_sent |= signal.target.exec_id.is_none(),
                Action::Report(_) => {}
            }
        }
    }

    /// Adds attributes of the container.
    pub fn describe(&mut self, attributes: &[(String, String)]) {
        for (key, value) in attributes {
            match self.attributes.binary_search_by(|(known, _)| known.cmp(key)) {
                Ok(at) => self.attributes[at].1.clone_from(value),
                Err(at) => self.attributes.insert(at, (key.clone(), value.clone())),
            }
        }
    }

    /// The kernel's counter at the last report, where one is read.
    pub fn kills_total(&self) -> Option<u64> {
        self.last_kill.as_ref().and_then(|(_, kill)| kill.total)
    }

    /// Whether a report is about more processes of the kill that was reported last. The kernel
    /// kills a group one process at a time, and each read of the counter finds some of them; its
    /// counter of groups rises once, after the first process.
    pub fn is_step_of_last_kill(&self, signal: &Signal) -> bool {
        let (Event::OomKill(kill), Some((at, last))) = (&signal.event, &self.last_kill) else {
            return false;
        };
        let (Some(groups), Some(before)) = (kill.groups, last.groups) else { return false };
        let same_group = match last.group {
            Some(true) => groups == before,
            // The first report came before the kernel counted the group.
            Some(false) | None => before.checked_add(1) == Some(groups),
        };
        let same_victim = match (&kill.victim, &last.victim) {
            (Some(victim), Some(before)) => victim.pid == before.pid,
            _ => true,
        };
        // A group within the container, and the container as a group, are two kills.
        let levels = [kill.level, last.level];
        let same_level = levels.contains(&Level::Unknown) || kill.level == last.level;
        same_group && same_victim && same_level && within(at, &signal.at, STEP_MS)
    }

    /// Whether a report comes within seconds of the kill that was reported last.
    pub fn is_near_last_kill(&self, signal: &Signal) -> bool {
        self.last_kill.as_ref().is_some_and(|(at, _)| within(at, &signal.at, NEAR_MS))
    }

    /// Adds another report of the kill that was reported last: more processes of it, or its victim.
    /// What was reported of it stays.
    pub fn add_step(&mut self, signal: &Signal) {
        let (Event::OomKill(kill), Some((at, last))) = (&signal.event, &mut self.last_kill) else { return };
        let (Some(total), Some(before)) = (kill.total, last.total) else { return };
        if total != before {
            *at = signal.at;
        }
        last.group = last.group.max(kill.group);
        last.groups = last.groups.max(kill.groups);
        last.complete(kill);
        // Another source may have read the counter before, and reports it after.
        if total > before {
            last.total = Some(total);
            if let Some(kills) = &mut self.kills {
                *kills = kills.saturating_add(total - before);
            }
        }
    }

    /// Adds a memory limit that was read at this moment, in bytes.
    pub fn learn_limit(&mut self, at: Moment, limit: u64) {
        // The kernel rounds a limit down to whole pages; the specification has it as it was given.
        if self.memory_limit.replace(limit).map(|before| before / PAGE) == Some(limit / PAGE) {
            return;
        }
        if self.limits.len() == LIMITS {
            self.limits.remove(0);
        }
        self.limits.push((at, limit));
    }

    fn learn_kill(&mut self, at: Moment, kill: &OomKilled) {
        if let Some(limit) = kill.limit_bytes {
            self.learn_limit(at, limit);
        }
        if kill.added == Some(0) {
            return;
        }
        if let (Some(kills), Some(added)) = (&mut self.kills, kill.added) {
            *kills = kills.saturating_add(added);
        }
        self.first_kill.get_or_insert(at);
        self.last_kill = Some((at, kill.clone()));
    }
}

/// Whether two moments are at most this far apart, in either order: sources read the same counter
/// and report it one after the other. A boot clock is not set back, and a backlog that is received
/// at once keeps its distances on it.
fn within(one: &Moment, other: &Moment, milliseconds: u64) -> bool {
    match (one.boot_ns, other.boot_ns) {
        (Some(one), Some(other)) => one.abs_diff(other) <= milliseconds * 1_000_000,
        _ => one.received_ms.abs_diff(other.received_ms) <= milliseconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::{Evidence, Target, Victim};

    fn request() -> Signal {
        let target = Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: "c".to_owned().try_into().unwrap(),
            exec_id: None,
            owner: None,
        };
        let at = Moment { boot_ns: None, wall_ms: None, received_ms: 0 };
        let event = Event::KillRequest(KillRequest { signal: 15, all: false });
        Signal { id: "i".to_owned(), at, target, event, attributes: Vec::new() }
    }

    #[test]
    fn kills_are_unknown_after_an_exit_without_counter_unless_seen() {
        let mut exit = request();
        exit.event = Event::Exited(Exited { is_init: Some(true), status: Some(137), ..Exited::unknown() });
        let mut case = Case::new(&[Known::KillCount]);
        case.forget_kill_count();
        assert_eq!((case.kills, case.knows(Known::KillCount)), (None, false));
        case.update(&exit, &[]);
        case.set_known(&[Known::KillCount]);
        assert_eq!((case.kills, case.knows(Known::KillCount)), (None, false));
        let mut case = Case::new(&[Known::KillCount]);
        case.kills = Some(1);
        case.forget_kill_count();
        assert_eq!((case.kills, case.knows(Known::KillCount)), (Some(1), true));
    }

    #[test]
    fn case_of_an_exit_has_the_loss_of_its_guest() {
        let mut lost = request();
        lost.event = Event::GuestLost(GuestLost { reason: "its monitor has ended".to_owned() });
        let mut case = Case::new(&[Known::ExitStatus]);
        assert_eq!(case.guest_lost, None);
        case.update(&lost, &[]);
        let mut exit = request();
        exit.event = Event::Exited(Exited { status: Some(0), ..Exited::unknown() });
        case.update(&exit, &[]);
        let reason = case.guest_lost.as_ref().map(|(_, lost)| lost.reason.as_str());
        assert_eq!((reason, case.exit.is_some()), (Some("its monitor has ended"), true));
    }

    #[test]
    fn limit_at_a_kill_is_todays_and_those_before_it_are_kept() {
        let mut case = Case::new(&[Known::KillCount]);
        case.learn_limit(request().at, 300 * PAGE);
        for (total, limit) in [(1, 300 * PAGE), (2, 200 * PAGE), (3, 200 * PAGE)] {
            let mut signal = kill(total, total, None, false);
            if let Event::OomKill(kill) = &mut signal.event {
                kill.limit_bytes = Some(limit);
            }
            case.update(&signal, &[]);
        }
        let limits: Vec<u64> = case.limits.iter().map(|(_, limit)| *limit).collect();
        assert_eq!((case.memory_limit, limits), (Some(200 * PAGE), vec![300 * PAGE, 200 * PAGE]));
        for limit in 0..100 {
            case.learn_limit(request().at, limit * PAGE);
        }
        assert_eq!((case.limits.len(), case.memory_limit), (LIMITS, Some(99 * PAGE)));
        let mut rounded = Case::new(&[]);
        for limit in [100_000_000, 99_999_744, 100_000_000] {
            rounded.learn_limit(request().at, limit);
        }
        assert_eq!(rounded.limits.len(), 1);
    }

    /// The report of a kill that raised the counter to `total`, and that of groups to `groups`.
    fn kill(ms: u64, total: u64, groups: Option<u64>, group: bool) -> Signal {
        let mut signal = request();
        signal.at.received_ms = ms;
        signal.event = Event::OomKill(OomKilled {
            added: Some(1),
            total: Some(total),
            group: Some(group),
            groups,
            ..OomKilled::new(Evidence::Counter)
        });
        signal
    }

    #[test]
    fn rises_of_the_counter_while_a_group_is_killed_are_one_kill() {
        let after = |first: &Signal| {
            let mut case = Case::new(&[Known::KillCount]);
            case.update(first, &[Action::TaskOom]);
            case
        };
        // The first read came before the kernel counted the group.
        let mut case = after(&kill(10, 1, Some(0), false));
        for (ms, total) in [(11, 7), (900, 399), (1_800, 400)] {
            let step = kill(ms, total, Some(1), ms == 11);
            assert!(case.is_step_of_last_kill(&step), "{total}");
            case.add_step(&step);
        }
        assert_eq!((case.kills, case.kills_total()), (Some(400), Some(400)));
        assert_eq!(case.last_kill.as_ref().unwrap().1.group, Some(true));
        // Another source read the same counter before, and reports it after.
        case.add_step(&kill(1_801, 7, Some(1), true));
        assert_eq!(case.kills_total(), Some(400));

        for (why, signal) in [
            ("another group", kill(1_900, 401, Some(2), true)),
            ("later", kill(2_900, 401, Some(1), false)),
            ("no number", kill(1_900, 401, Some(u64::MAX), true)),
            ("counter of groups unknown", kill(1_900, 401, None, false)),
        ] {
            assert!(!case.is_step_of_last_kill(&signal), "{why}");
        }
        // A container that outlives the kill of a group within it: later kills are of their own.
        let lives = after(&kill(10, 401, Some(1), false));
        assert!(!lives.is_step_of_last_kill(&kill(500, 402, Some(1), false)), "the group was another's");
        let mut backlog = kill(1_900, 401, Some(1), false);
        (case.last_kill.as_mut().unwrap().0.boot_ns, backlog.at.boot_ns) = (Some(1), Some(30_000_000_000));
        assert!(!case.is_step_of_last_kill(&backlog), "received at once, and 30 s apart");
        let level = |level, groups| {
            let mut signal = kill(10, groups + 1, Some(groups), groups > 0);
            if let Event::OomKill(kill) = &mut signal.event {
                kill.level = level;
            }
            signal
        };
        let child = after(&level(Level::Child, 0));
        assert!(!child.is_step_of_last_kill(&level(Level::Container, 1)), "another limit");
        assert!(child.is_step_of_last_kill(&level(Level::Child, 1)));
        let single = after(&kill(10, 1, Some(0), false));
        assert!(!single.is_step_of_last_kill(&kill(11, 2, Some(0), false)), "no group was killed");
        let named = |pid| {
            let mut signal = kill(11, 2, Some(1), false);
            if let Event::OomKill(kill) = &mut signal.event {
                kill.victim = Some(Victim { pid, comm: "a".to_owned(), is_init: None });
            }
            signal
        };
        let case = after(&named(7));
        assert!(!case.is_step_of_last_kill(&named(8)), "the kernel chose another victim");
    }

    #[test]
    fn known_facts_merge_and_writable_follow_last_reporter() {
        let mut case = Case::new(&[Known::KillRequests, Known::ExitWritable]);
        case.update(&request(), &[]);
        case.set_known(&[Known::KillCount]);
        assert_eq!((case.requests.as_ref().map(Vec::len), case.kills), (Some(1), Some(0)));
        assert_eq!(case.known, [Known::KillCount, Known::KillRequests]);
        case.set_known(&[Known::KillRequests, Known::ExitWritable]);
        assert_eq!(case.known, [Known::KillCount, Known::KillRequests, Known::ExitWritable]);
        assert_eq!((case.requests.as_ref().map(Vec::len), case.kills), (Some(1), Some(0)));
    }
}
