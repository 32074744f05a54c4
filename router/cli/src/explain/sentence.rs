//! What happened to a container, in one sentence.

use std::time::Duration;

use coroner_core::verdict::{EndedBy, ExitFacts, Gap, KillFacts, RulingAuthor, Verdict};

use crate::render::{self, limit, signal_name, span};

/// The sentence; it begins with whether the container was OOM-killed.
pub(super) fn sentence(verdict: &Verdict) -> String {
    let end = end(verdict);
    let oom = verdict.published.oom.as_ref();
    let by = oom.and_then(|it| it.by.as_ref()).map(|it| format!("; {}", author(it, "task-oom")));
    let by = by.unwrap_or_default();
    let what = match (&verdict.kill, oom, end) {
        (Some(kill), _, end) => killed(verdict, kill, end.as_deref()),
        (None, Some(_), Some(end)) => {
            format!("ruled OOM-killed, without a kill that the kernel counted: {end}{by}")
        }
        (None, Some(_), None) => format!("ruled OOM-killed, and no record of its end{by}"),
        (None, None, Some(end)) => format!("{end}{}", uncounted(&verdict.unknown)),
        (None, None, None) => "runs, by these records".to_owned(),
    };
    format!("{what}{}{}{}", status(verdict), lost(verdict), delivered(verdict))
}

fn killed(verdict: &Verdict, kill: &KillFacts, end: Option<&str>) -> String {
    let at = limit(&kill.limit).map(|it| format!(" {it}")).unwrap_or_default();
    let comm = kill.victim.as_ref().and_then(|it| it.comm.as_ref());
    let comm = comm.map(|it| format!(" ({it})")).unwrap_or_default();
    let times = match kill.recorded {
        1 => String::new(),
        more => format!(" ({more} kills in all)"),
    };
    let late = if kill.late { "; the kill was reported after the exit" } else { "" };
    let Some(end) = end else {
        return format!("an OOM kill in it{comm}{at}{times}, and it runs, by these records");
    };
    let by_kill = verdict.ended_by == EndedBy::OomKill && verdict.exit.is_some();
    if by_kill && kill.group == Some(true) {
        let counted = kill.counted.filter(|kills| *kills > 1);
        let counted = counted.map(|kills| format!(", counter {kills}")).unwrap_or_default();
        return format!(
            "OOM-killed: the kernel killed the whole container{comm}{at}{counted}; it {end}{late}"
        );
    }
    let after = verdict.exit.as_ref().map(after).unwrap_or_default();
    match kill.hit_init {
        Some(true) => {
            format!("OOM-killed: the kernel killed its first process{comm}{at}{times}; it {end}{late}")
        }
        Some(false) => format!("{end}{after} after an OOM kill of a child{comm}{at}{times}{late}"),
        None => format!(
            "{end}{after} after an OOM kill in it{comm}{at}{times}; whether of its first process is not \
             known{late}"
        ),
    }
}

/// How it ended.
fn end(verdict: &Verdict) -> Option<String> {
    let Some(exit) = &verdict.exit else {
        return Some(format!("was lost with its guest ({})", verdict.guest_lost.as_ref()?));
    };
    let reconciled = if exit.reconciled { " while no router ran" } else { "" };
    let sent = exit.cause.as_ref().and_then(render::cause).map(|it| format!(", {it}"));
    let sent = sent.or_else(|| requested(exit)).unwrap_or_default();
    Some(match (exit.status, exit.by_signal, exit.signal) {
        (_, _, Some(signal)) => format!("was ended by {}{sent}{reconciled}", signal_name(signal)),
        (Some(status), Some(false), None) => format!("exited {status}{reconciled}"),
        // Whether by a signal is not known: what was requested, then, and not what sent it.
        (Some(status), _, None) => {
            let requested = requested(exit).unwrap_or(sent);
            format!("ended with status {status}{requested}{reconciled}")
        }
        (None, _, None) => format!("ended{reconciled}, with what status is not known"),
    })
}

/// That the signal which fits its end was requested before.
fn requested(exit: &ExitFacts) -> Option<String> {
    let name = signal_name(exit.requested?);
    Some(format!(", after {name} was sent through the container runtime"))
}

/// How long after a kill the exit followed.
fn after(exit: &ExitFacts) -> String {
    exit.after_kill_ns.map(|ns| format!(", {}", span(Duration::from_nanos(ns)))).unwrap_or_default()
}

/// That a kill may have been missed: stated of an end that a kill could explain.
fn uncounted(gaps: &[Gap]) -> String {
    let because = gaps.iter().find_map(|gap| match gap {
        Gap::KillCount(because) => Some(because),
        _ => None,
    });
    let because = because.map(|because| {
        format!("; whether for memory is not known: its kill counter was not read ({because})")
    });
    because.unwrap_or_default()
}

/// Which status was published, if that is not its own.
fn status(verdict: &Verdict) -> String {
    let Some(status) = verdict.published.status else { return String::new() };
    if verdict.exit.as_ref().is_some_and(|exit| exit.status == Some(status)) {
        return String::new();
    }
    let by = verdict.published.exit.as_ref().and_then(|it| it.by.as_ref());
    by.map(|by| format!("; {}", author(by, &format!("status {status} published")))).unwrap_or_default()
}

/// That its guest was lost, where its exit was reported too.
fn lost(verdict: &Verdict) -> String {
    let lost = verdict.guest_lost.as_ref().filter(|_| verdict.exit.is_some());
    lost.map(|reason| format!("; its guest was lost ({reason})")).unwrap_or_default()
}

/// What put an action there, and why.
pub(super) fn author(by: &RulingAuthor, action: &str) -> String {
    match (&by.policy, &by.because) {
        (Some(policy), Some(because)) => format!("{policy}: {action}, because {because}"),
        (Some(policy), None) => format!("{policy}: {action}"),
        // The native default has a rule, unless it stands for a ruling that is not legal.
        (None, Some(because)) if by.rule.is_none() => {
            format!("native default: {action}, because {because}")
        }
        (None, _) => format!("native default: {action}"),
    }
}

/// Whether the sink for OOM kills has this one.
fn delivered(verdict: &Verdict) -> String {
    let oom = verdict.published.oom.as_ref();
    let Some((sink, delivered)) = oom.and_then(|it| Some((it.sink.as_ref()?, it.delivered?))) else {
        return String::new();
    };
    let knows = if delivered { "knows of the kill" } else { "does not know of the kill yet" };
    format!("; {sink} {knows}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::explain::reading::verdict;
    use crate::render::record::{RecordLine, read};

    const OOM: &str = "/tasks/oom";

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
        assert_eq!(sentence(&verdict(&entries)), expect);
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
            "was ended by SIGKILL, 1 ms after an OOM kill in it (sh) at its limit of 32 MiB; whether of its first process is not known; containerd does not know of the kill yet",
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
    fn what_sent_the_signal_is_stated_and_only_where_it_was_seen() {
        let child = record(1, &kill(None, false), &json!([]));
        let ended_by = |cause: Value| {
            let mut exit = exited(Some(137), Some(9), false);
            exit["exited"]["cause"] = cause;
            record(25_001, &exit, &json!([]))
        };
        let bash = json!({ "pid": 9, "comm": "bash" });
        check(
            &[child.clone(), ended_by(json!({ "kind": "runtime", "sources": ["trace"] }))],
            "was ended by SIGKILL, sent through the container runtime, 25.0 s after an OOM kill of a child (sh) at its limit of 32 MiB",
        );
        check(
            &[ended_by(json!({ "kind": "node-process", "sender": bash, "sources": ["trace"] }))],
            "was ended by SIGKILL, sent by bash (pid 9) outside of the container",
        );
        check(
            &[child.clone(), ended_by(json!({ "kind": "kernel-oom", "sources": ["trace"] }))],
            "OOM-killed: the kernel killed its first process (sh) at its limit of 32 MiB; it was ended by SIGKILL, by the kernel's OOM killer",
        );
        let mut stopped = record(25_001, &exited(Some(137), None, false), &json!([]));
        stopped["case"]["requests"] = json!([[{ "received-ms": 23_000 }, { "signal": 9, "all": false }]]);
        check(
            &[child, stopped.clone()],
            "ended with status 137, after SIGKILL was sent through the container runtime, 25.0 s after an OOM kill in it (sh) at its limit of 32 MiB; whether of its first process is not known",
        );
        let mut requested = stopped;
        requested["signal"]["event"]["exited"]["cause"] =
            json!({ "kind": "runtime", "sources": ["kill-request"] });
        check(&[requested], "ended with status 137, after SIGKILL was sent through the container runtime");
        let lost = record(2, &json!({ "guest-lost": { "reason": "link cut" } }), &json!([]));
        check(
            &[record(1, &kill(None, false), &json!([])), lost],
            "was lost with its guest (link cut) after an OOM kill in it (sh) at its limit of 32 MiB; whether of its first process is not known",
        );
        let mut code = exited(Some(137), None, false);
        code["exited"]["by-signal"] = json!(false);
        check(&[record(2, &code, &json!([]))], "exited 137");
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
    fn kill_of_a_group_within_the_container_may_have_had_its_init() {
        let mut within = kill(Some(false), false);
        within["oom-kill"]["group"] = json!(true);
        within["oom-kill"]["level"] = json!("child");
        let exit = record(9, &exited(Some(137), Some(9), false), &json!([]));
        check(
            &[record(1, &within, &json!(["task-oom"])), acked(), exit],
            "was ended by SIGKILL, 8 ms after an OOM kill in it (sh) at a limit within it; whether of its first process is not known; containerd knows of the kill",
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

    #[test]
    fn published_status_and_lost_guest_are_stated_beside_the_end() {
        let mut mapped = record(1, &exited(Some(42), None, false), &json!([{ "task-exit": 0 }]));
        mapped["delivery"] = json!([{ "topic": "/tasks/exit", "state": "queued", "sink": "containerd" }]);
        mapped["rulings"] = json!([{ "policy": "40-map", "version": "1", "digest": "", "fuel": 0, "ruling": { "decide": { "actions": [{ "task-exit": 0 }], "because": "42 is success" } } }]);
        check(&[mapped], "exited 42; 40-map: status 0 published, because 42 is success");
        let lost = record(1, &json!({ "guest-lost": { "reason": "link cut" } }), &json!([]));
        let exit = record(2, &exited(Some(0), None, false), &json!([]));
        check(&[lost, exit], "exited 0; its guest was lost (link cut)");
    }

    #[test]
    fn policy_that_put_the_kill_there_is_named() {
        let decided = |policy: &str, actions: Value| json!({ "policy": policy, "version": "1", "digest": "", "fuel": 0, "ruling": { "decide": { "actions": actions, "because": format!("of {policy}") } } });
        let report = json!({ "report": { "topic": "t", "reason": "", "message": "", "fields": [] } });
        let both = json!(["task-oom", report]);
        let mut ruled = record(1, &exited(Some(137), Some(9), false), &both);
        ruled["rulings"] = json!([decided("50-x", json!(["task-oom"])), decided("80-y", both)]);
        check(
            &[ruled],
            "ruled OOM-killed, without a kill that the kernel counted: was ended by SIGKILL; 50-x: task-oom, because of 50-x; containerd does not know of the kill yet",
        );
    }
}
