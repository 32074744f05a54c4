//! What happened to a container, in one sentence.

use std::time::Duration;

use coroner_core::audit::{PlannedState, Ruled};
use coroner_core::case::Case;
use coroner_core::ruling::Action;
use coroner_core::signal::{Event, Evidence, Exited, KILLS_UNKNOWN, Level, OomKilled, SAME_KILL, Signal};

use crate::render::record::RecordLine;
use crate::render::{self, limit, signal_name, span};

const OOM: &str = "/tasks/oom";

/// What the records state.
#[derive(Debug, Default)]
struct DeathFacts<'a> {
    /// The last kill by the kernel.
    kill: Option<(&'a Signal, &'a OomKilled)>,
    kills: usize,
    /// Whether TaskOOM was ruled, and its ruling, unless the record of that is lost.
    is_oom: bool,
    oom: Option<&'a Ruled>,
    exit: Option<(&'a Signal, &'a Exited)>,
    /// The case at the exit, unless the record of its ruling is lost.
    case: Option<&'a Case>,
    /// Why its guest was lost.
    lost: Option<&'a str>,
}

/// The sentence; it begins with whether the container was OOM-killed.
pub(super) fn verdict(entries: &[RecordLine]) -> String {
    let mut facts = DeathFacts::default();
    let mut last_id = None;
    for entry in entries {
        let (signal, is_oom, ruled) = match entry {
            RecordLine::Ruled(it) => (&it.signal, it.actions.contains(&Action::TaskOom), Some(it)),
            RecordLine::Resumed(it) => {
                let Some(signal) = &it.signal else { continue };
                (signal, it.topics.iter().any(|topic| topic == OOM), None)
            }
            _ => continue,
        };
        // The exit of an exec is not the container's.
        if signal.target.exec_id.is_none() {
            let is_repeated = last_id.replace(&signal.id) == Some(&signal.id);
            facts.add(signal, is_repeated);
            if matches!(signal.event, Event::Exited(_)) {
                facts.case = ruled.map(|it| &it.case).or(facts.case);
            }
            if is_oom {
                facts.is_oom = true;
                facts.oom = ruled.map(|it| &**it).or(facts.oom);
            }
        }
    }
    format!("{}{}", facts.sentence(), delivered(entries, facts.oom))
}

impl<'a> DeathFacts<'a> {
    fn add(&mut self, signal: &'a Signal, is_repeated: bool) {
        match &signal.event {
            Event::OomKill(_) if render::attribute(signal, SAME_KILL).is_some() => {}
            Event::OomKill(kill) if kill.added != Some(0) && kill.evidence != Evidence::Inferred => {
                self.kill = Some((signal, kill));
                self.kills += usize::from(!is_repeated);
            }
            Event::Exited(exited) if exited.is_init != Some(false) => self.exit = Some((signal, exited)),
            Event::GuestLost(lost) => self.lost = Some(&lost.reason),
            _ => {}
        }
    }

    fn sentence(&self) -> String {
        let end = self.end();
        let by = self.oom.map(|ruled| format!("; {}", render::decided(ruled))).unwrap_or_default();
        match (self.kill, self.is_oom, end) {
            (Some((signal, kill)), _, end) => self.killed(signal, kill, end.as_deref()),
            (None, true, Some(end)) => {
                format!("ruled OOM-killed, without a kill that the kernel counted: {end}{by}")
            }
            (None, true, None) => format!("ruled OOM-killed, and no record of its end{by}"),
            (None, false, Some(end)) => format!("{end}{}", self.uncounted()),
            (None, false, None) => "runs, by these records".to_owned(),
        }
    }

    fn killed(&self, signal: &Signal, kill: &OomKilled, end: Option<&str>) -> String {
        let at = limit(kill).map(|it| format!(" {it}")).unwrap_or_default();
        let comm = kill.victim.as_ref().map(|it| format!(" ({})", it.comm)).unwrap_or_default();
        let times = match self.kills {
            1 => String::new(),
            more => format!(" ({more} kills in all)"),
        };
        let late = if kill.late { "; the kill was reported after the exit" } else { "" };
        let is_init = kill.victim.as_ref().and_then(|it| it.is_init);
        match end {
            Some(end) if self.by_sigkill() && self.whole(kill) => {
                let counted = self.case.and_then(|case| case.kills).filter(|kills| *kills > 1);
                let counted = counted.map(|kills| format!(", counter {kills}")).unwrap_or_default();
                format!(
                    "OOM-killed: the kernel killed the whole container{comm}{at}{counted}; it {end}{late}"
                )
            }
            None => format!("an OOM kill in it{comm}{at}{times}, and it runs, by these records"),
            Some(end) if is_init.unwrap_or_else(|| self.by_sigkill()) => {
                format!("OOM-killed: the kernel killed its first process{comm}{at}{times}; it {end}{late}")
            }
            Some(end) => {
                let after = self.exit.map(|(exit, _)| since(signal, exit)).unwrap_or_default();
                format!("{end}{after} after an OOM kill of a child{comm}{at}{times}{late}")
            }
        }
    }

    /// How it ended.
    fn end(&self) -> Option<String> {
        if let Some((_, exited)) = self.exit {
            let reconciled = if exited.reconciled { " while no router ran" } else { "" };
            return Some(match (exited.status, exited.signal) {
                (_, Some(signal)) => format!("was ended by {}{reconciled}", signal_name(signal)),
                (Some(status), None) => format!("exited {status}{reconciled}"),
                (None, None) => format!("ended{reconciled}, with what status is not known"),
            });
        }
        Some(format!("was lost with its guest ({})", self.lost?))
    }

    /// That a kill may have been missed: stated of an end that a kill could explain.
    fn uncounted(&self) -> String {
        match self.exit.and_then(|(signal, _)| render::attribute(signal, KILLS_UNKNOWN)) {
            Some(because) if self.by_sigkill() => {
                format!("; whether for memory is not known: its kill counter was not read ({because})")
            }
            _ => String::new(),
        }
    }

    /// Whether a group of processes was killed. The first report may have come before the kernel
    /// counted the group.
    fn whole(&self, kill: &OomKilled) -> bool {
        let last = self.case.and_then(|case| case.last_kill.as_ref()).map(|(_, last)| last);
        [Some(kill), last].into_iter().flatten().any(|it| it.group == Some(true) && it.level != Level::Child)
    }

    fn by_sigkill(&self) -> bool {
        self.exit.is_some_and(|(_, exited)| exited.signal == Some(9) || exited.status == Some(137))
    }
}

/// How long after a kill the exit followed, on the clock of the machine that reported both.
fn since(kill: &Signal, exit: &Signal) -> String {
    match (kill.at.boot_ns, exit.at.boot_ns) {
        (Some(kill), Some(exit)) if exit >= kill => {
            format!(", {}", span(Duration::from_nanos(exit - kill)))
        }
        _ => String::new(),
    }
}

/// Whether the sink for OOM kills has this one.
fn delivered(entries: &[RecordLine], oom: Option<&Ruled>) -> String {
    let Some(ruled) = oom else { return String::new() };
    let mut plans = ruled.delivery.iter().filter(|it| it.state == PlannedState::Queued);
    let Some(sink) = plans.find(|it| it.topic == OOM).and_then(|it| it.sink.as_ref()) else {
        return String::new();
    };
    let is_known = entries.iter().any(|entry| match entry {
        RecordLine::Delivered(it) => {
            (&it.id, it.topic.as_str(), &it.sink) == (&ruled.signal.id, OOM, sink) && render::is_delivered(it)
        }
        _ => false,
    });
    let knows = if is_known { "knows of the kill" } else { "does not know of the kill yet" };
    format!("; {sink} {knows}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::render::record::read;

    fn record(id: u64, event: &Value, actions: &Value) -> Value {
        let plan = json!([{ "topic": OOM, "state": "queued", "sink": "containerd" }]);
        let delivery = if actions[0] == "task-oom" { plan } else { json!([]) };
        let at = json!({ "boot-ns": id * 1_000_000, "received-ms": id });
        let target = json!({ "node": "n", "container-id": "c" });
        let signal =
            json!({ "id": id.to_string(), "at": at, "target": target, "event": event, "attributes": [] });
        let case = json!({ "known": [], "oom-sent": false, "exit-sent": false, "attributes": [] });
        json!({
            "record": "ruled", "source": "s", "mode": "sole", "generation": 1, "signal": signal, "case": case,
            "draft": [], "actions": actions, "rulings": [], "delivery": delivery
        })
    }

    fn kill(is_init: Option<bool>, late: bool) -> Value {
        let victim = json!({ "pid": 7, "comm": "sh", "is-init": is_init });
        json!({ "oom-kill": { "added": 1, "total": 1, "evidence": "counter", "level": "container", "limit-bytes": 33_554_432, "victim": victim, "late": late } })
    }

    fn exited(status: Option<u32>, signal: Option<u8>, reconciled: bool) -> Value {
        json!({ "exited": { "is-init": true, "status": status, "signal": signal, "reconciled": reconciled } })
    }

    fn check(records: &[Value], expect: &str) {
        let entries: Vec<RecordLine> = records.iter().map(|it| read(&it.to_string()).unwrap()).collect();
        assert_eq!(verdict(&entries), expect);
    }

    fn acked() -> Value {
        json!({ "record": "delivered", "id": "1", "sink": "containerd", "topic": OOM, "outcome": "acked", "attempts": 1, "waited-ms": 0 })
    }

    #[test]
    fn kill_of_init_and_kill_of_child_differ() {
        let oom = json!(["task-oom"]);
        let init = record(1, &kill(Some(true), false), &oom);
        let died = record(2, &exited(Some(137), Some(9), false), &json!([]));
        check(
            &[init, acked(), died.clone()],
            "OOM-killed: the kernel killed its first process (sh) at its limit of 32 MiB; it was ended by SIGKILL; containerd knows of the kill",
        );
        check(
            &[record(1, &kill(None, false), &oom), died],
            "OOM-killed: the kernel killed its first process (sh) at its limit of 32 MiB; it was ended by SIGKILL; containerd does not know of the kill yet",
        );
        let child = record(1, &kill(Some(false), false), &oom);
        let exit = record(13, &exited(Some(1), None, false), &json!([]));
        check(
            &[child.clone(), acked(), exit.clone()],
            "exited 1, 12 ms after an OOM kill of a child (sh) at its limit of 32 MiB; containerd knows of the kill",
        );
        check(
            &[child.clone(), child, acked()],
            "an OOM kill in it (sh) at its limit of 32 MiB, and it runs, by these records; containerd knows of the kill",
        );
        check(
            &[exit, record(14, &kill(Some(false), true), &json!([]))],
            "exited 1 after an OOM kill of a child (sh) at its limit of 32 MiB; the kill was reported after the exit",
        );
    }

    #[test]
    fn kill_of_a_group_is_one_kill_of_the_container() {
        let first = record(1, &kill(Some(false), false), &json!(["task-oom"]));
        let mut more = record(2, &kill(Some(false), false), &json!([]));
        more["signal"]["attributes"] = json!([["same-kill", "true"]]);
        let mut exit = record(9, &exited(Some(137), Some(9), false), &json!([]));
        let last = json!({ "total": 400, "evidence": "counter", "level": "container", "group": true, "groups": 1, "late": false });
        exit["case"]["kills"] = json!(400);
        exit["case"]["last-kill"] = json!([{ "received-ms": 8 }, last]);
        check(
            &[first, acked(), more, exit],
            "OOM-killed: the kernel killed the whole container (sh) at its limit of 32 MiB, counter 400; it was ended by SIGKILL; containerd knows of the kill",
        );
    }

    #[test]
    fn kill_of_a_group_within_the_container_is_of_a_child() {
        let mut within = kill(Some(false), false);
        within["oom-kill"]["group"] = json!(true);
        within["oom-kill"]["level"] = json!("child");
        let exit = record(9, &exited(Some(137), Some(9), false), &json!([]));
        check(
            &[record(1, &within, &json!(["task-oom"])), acked(), exit],
            "was ended by SIGKILL, 8 ms after an OOM kill of a child (sh) at a limit within it of 32 MiB; containerd knows of the kill",
        );
    }

    #[test]
    fn other_ends_are_shown_as_recorded() {
        check(&[], "runs, by these records");
        check(&[record(1, &exited(Some(0), None, false), &json!([]))], "exited 0");
        let unknown = record(1, &exited(None, None, true), &json!([]));
        check(&[unknown], "ended while no router ran, with what status is not known");
        let lost = record(1, &json!({ "guest-lost": { "reason": "its monitor has ended" } }), &json!([]));
        check(&[lost], "was lost with its guest (its monitor has ended)");
        let mut ruled = record(1, &exited(Some(137), Some(9), false), &json!(["task-oom"]));
        ruled["rulings"] = json!([{ "policy": "50-x", "version": "1", "digest": "", "fuel": 0, "ruling": { "decide": { "actions": ["task-oom"], "because": "no kill request" } } }]);
        check(
            &[ruled],
            "ruled OOM-killed, without a kill that the kernel counted: was ended by SIGKILL; 50-x: task-oom, because no kill request; containerd does not know of the kill yet",
        );
        let mut uncounted = record(1, &exited(Some(137), Some(9), false), &json!([]));
        uncounted["signal"]["attributes"] = json!([["kills-unknown-because", "cgroup gone"]]);
        check(
            &[uncounted.clone()],
            "was ended by SIGKILL; whether for memory is not known: its kill counter was not read (cgroup gone)",
        );
        uncounted["signal"]["event"] = exited(Some(0), None, false);
        check(&[uncounted], "exited 0");
        let mut exec = record(2, &exited(Some(1), None, false), &json!([]));
        exec["signal"]["target"]["exec-id"] = json!("e");
        check(&[exec], "runs, by these records");
    }
}
