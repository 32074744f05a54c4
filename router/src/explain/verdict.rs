//! What became of a container, in one sentence.

use serde_json::Value;

use crate::telling::{self, limit, signal_name, span};

/// What is known in the end.
#[derive(Debug, Default)]
struct Known<'a> {
    /// The last kill of the kernel's.
    kill: Option<&'a Value>,
    kills: usize,
    /// The ruling that had TaskOOM published.
    oom: Option<&'a Value>,
    exit: Option<&'a Value>,
    lost: Option<&'a Value>,
}

/// The sentence; whether the container was OOM-killed is its beginning.
pub(super) fn verdict(records: &[Value]) -> String {
    let mut known = Known::default();
    let mut last_id = None;
    for record in records.iter().filter(|it| telling::has_signal(it)) {
        let signal = &record["signal"];
        // An exec's end is not the container's.
        if !signal["target"]["exec-id"].is_null() {
            continue;
        }
        let event = &signal["event"];
        let repeated = last_id.replace(&signal["id"]) == Some(&signal["id"]);
        if event["oom-kill"].is_object()
            && event["oom-kill"]["added"] != 0
            && event["oom-kill"]["evidence"] != "inferred"
        {
            known.kill = Some(signal);
            known.kills += usize::from(!repeated);
        }
        let has = |list: &str, what: &str| {
            record[list].as_array().is_some_and(|it| it.iter().any(|entry| entry == what))
        };
        if has("actions", "task-oom") || has("topics", "/tasks/oom") {
            known.oom = Some(record);
        }
        if event["exited"].is_object() && event["exited"]["is-init"] != false {
            known.exit = Some(signal);
        }
        if event["guest-lost"].is_object() {
            known.lost = Some(signal);
        }
    }
    format!("{}{}", known.sentence(), delivered(records, known.oom))
}

impl Known<'_> {
    fn sentence(&self) -> String {
        let end = self.end();
        match (self.kill, self.oom, end) {
            (Some(kill), _, end) => self.killed(kill, end.as_deref()),
            (None, Some(oom), Some(end)) => format!(
                "ruled OOM-killed, without a kill that the kernel counted: {end}; {}",
                telling::decided(oom)
            ),
            (None, Some(oom), None) => {
                format!("ruled OOM-killed, and its end is not told; {}", telling::decided(oom))
            }
            (None, None, Some(end)) => end,
            (None, None, None) => "lives, as far as these records tell".to_owned(),
        }
    }

    fn killed(&self, signal: &Value, end: Option<&str>) -> String {
        let kill = &signal["event"]["oom-kill"];
        let at = limit(kill).map(|it| format!(" {it}")).unwrap_or_default();
        let comm = telling::text(&kill["victim"]["comm"]);
        let comm = comm.map(|it| format!(" ({it})")).unwrap_or_default();
        let times = match self.kills {
            1 => String::new(),
            more => format!(" ({more} kills in all)"),
        };
        let late = if kill["late"] == true { "; the kill was learnt after the exit" } else { "" };
        let is_init = kill["victim"]["is-init"].as_bool().unwrap_or_else(|| self.by_sigkill());
        match end {
            None => format!("an OOM kill in it{comm}{at}{times}, and it lives, as far as these records tell"),
            Some(end) if is_init => {
                format!("OOM-killed: the kernel killed its first process{comm}{at}{times}; it {end}{late}")
            }
            Some(end) => {
                let after = self.exit.map(|exit| since(signal, exit)).unwrap_or_default();
                format!("{end}{after} after an OOM kill of a child{comm}{at}{times}{late}")
            }
        }
    }

    /// How it ended.
    fn end(&self) -> Option<String> {
        if let Some(exit) = self.exit {
            let exited = &exit["event"]["exited"];
            let reconciled = if exited["reconciled"] == true { " while no router ran" } else { "" };
            return Some(match (exited["status"].as_u64(), exited["signal"].as_u64()) {
                (_, Some(signal)) => format!("was ended by {}{reconciled}", signal_name(Some(signal))),
                (Some(status), None) => format!("exited {status}{reconciled}"),
                (None, None) => format!("ended{reconciled}, with what status is not known"),
            });
        }
        let reason = telling::text(&self.lost?["event"]["guest-lost"]["reason"]).unwrap_or_default();
        Some(format!("was lost with its guest ({reason})"))
    }

    fn by_sigkill(&self) -> bool {
        self.exit.is_some_and(|exit| {
            exit["event"]["exited"]["signal"] == 9 || exit["event"]["exited"]["status"] == 137
        })
    }
}

/// How long after a kill the exit came, on the clock of who saw both.
fn since(kill: &Value, exit: &Value) -> String {
    let ns = |signal: &Value| signal["at"]["boot-ns"].as_u64();
    match (ns(kill), ns(exit)) {
        (Some(kill), Some(exit)) if exit >= kill => format!(", {}", span((exit - kill) / 1_000_000)),
        _ => String::new(),
    }
}

/// Whether who was to be told of the kill has been.
fn delivered(records: &[Value], oom: Option<&Value>) -> String {
    const TOPIC: &str = "/tasks/oom";
    let plans = oom.and_then(|it| it["delivery"].as_array()).into_iter().flatten();
    let Some(plan) = plans.into_iter().find(|it| it["topic"] == TOPIC && it["state"] == "queued") else {
        return String::new();
    };
    let id = oom.map(|it| &it["signal"]["id"]);
    let of = |it: &&Value| {
        it["record"] == "delivered"
            && Some(&it["id"]) == id
            && it["topic"] == TOPIC
            && it["sink"] == plan["sink"]
    };
    let taken = records.iter().filter(of).any(|it| it["outcome"] == "acked" || it["outcome"] == "repeated");
    let sink = telling::text(&plan["sink"]).unwrap_or_default();
    if taken {
        format!("; {sink} knows of the kill")
    } else {
        format!("; {sink} does not know of the kill yet")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(id: u64, event: &Value, actions: &Value) -> Value {
        let delivery = json!([{ "topic": "/tasks/oom", "state": "queued", "sink": "containerd" }]);
        let delivery = if actions[0] == "task-oom" { delivery } else { json!([]) };
        let signal = json!({ "id": id, "at": { "boot-ns": id * 1_000_000 }, "target": { "exec-id": null }, "event": event });
        json!({ "record": "ruled", "signal": signal, "actions": actions, "rulings": [], "delivery": delivery })
    }

    fn kill(is_init: &Value, late: bool) -> Value {
        let victim = json!({ "pid": 7, "comm": "sh", "is-init": is_init });
        json!({ "oom-kill": { "added": 1, "total": 1, "evidence": "counter", "level": "container", "limit-bytes": 33_554_432, "victim": victim, "late": late } })
    }

    fn exited(status: &Value, signal: &Value, reconciled: bool) -> Value {
        json!({ "exited": { "is-init": true, "status": status, "signal": signal, "reconciled": reconciled } })
    }

    fn check(records: &[Value], expect: &str) {
        assert_eq!(verdict(records), expect);
    }

    #[test]
    fn a_kill_of_the_first_process_and_of_a_child_are_told_apart() {
        let oom = json!(["task-oom"]);
        let acked = json!({ "record": "delivered", "id": 1, "sink": "containerd", "topic": "/tasks/oom", "outcome": "acked" });
        let init = record(1, &kill(&json!(true), false), &oom);
        let died = record(2, &exited(&json!(137), &json!(9), false), &json!([]));
        check(
            &[init.clone(), acked.clone(), died.clone()],
            "OOM-killed: the kernel killed its first process (sh) at its limit of 32 MiB; it was ended by SIGKILL; containerd knows of the kill",
        );
        check(
            &[record(1, &kill(&json!(null), false), &oom), died],
            "OOM-killed: the kernel killed its first process (sh) at its limit of 32 MiB; it was ended by SIGKILL; containerd does not know of the kill yet",
        );
        let child = record(1, &kill(&json!(false), false), &oom);
        let exit = record(13, &exited(&json!(1), &json!(null), false), &json!([]));
        check(
            &[child.clone(), acked.clone(), exit.clone()],
            "exited 1, 12 ms after an OOM kill of a child (sh) at its limit of 32 MiB; containerd knows of the kill",
        );
        check(
            &[child.clone(), child, acked.clone()],
            "an OOM kill in it (sh) at its limit of 32 MiB, and it lives, as far as these records tell; containerd knows of the kill",
        );
        check(
            &[exit, record(14, &kill(&json!(false), true), &json!([]))],
            "exited 1 after an OOM kill of a child (sh) at its limit of 32 MiB; the kill was learnt after the exit",
        );
    }

    #[test]
    fn other_ends_are_told_as_they_were() {
        check(&[], "lives, as far as these records tell");
        check(&[record(1, &exited(&json!(0), &json!(null), false), &json!([]))], "exited 0");
        let unknown = record(1, &exited(&json!(null), &json!(null), true), &json!([]));
        check(&[unknown], "ended while no router ran, with what status is not known");
        let lost = record(1, &json!({ "guest-lost": { "reason": "its monitor has ended" } }), &json!([]));
        check(&[lost], "was lost with its guest (its monitor has ended)");
        let mut ruled = record(1, &exited(&json!(137), &json!(9), false), &json!(["task-oom"]));
        ruled["rulings"] = json!([{ "policy": "50-x", "ruling": { "decide": { "actions": ["task-oom"], "because": "nobody asked" } } }]);
        check(
            &[ruled],
            "ruled OOM-killed, without a kill that the kernel counted: was ended by SIGKILL; 50-x: task-oom, because nobody asked; containerd does not know of the kill yet",
        );
        let mut exec = record(2, &exited(&json!(1), &json!(null), false), &json!([]));
        exec["signal"]["target"]["exec-id"] = json!("e");
        check(&[exec], "lives, as far as these records tell");
    }
}
