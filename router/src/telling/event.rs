//! What happened, in words.

use serde_json::Value;

use super::{span, text};

/// What a signal tells.
pub(crate) fn happened(signal: &Value) -> String {
    let event = &signal["event"];
    let what = if event["oom-kill"].is_object() {
        oom(&event["oom-kill"])
    } else if event["exited"].is_object() {
        exited(&event["exited"])
    } else if event["pressure"].is_object() {
        pressure(&event["pressure"])
    } else if event["kill-request"].is_object() {
        let request = &event["kill-request"];
        let all = if request["all"] == true { " to all its processes" } else { "" };
        format!("{} was sent through the runtime{all}", signal_name(request["signal"].as_u64()))
    } else if event["guest-lost"].is_object() {
        format!("its guest is lost: {}", text(&event["guest-lost"]["reason"]).unwrap_or_default())
    } else {
        let kind = event.as_object().and_then(|it| it.keys().next()).map_or("?", String::as_str);
        text(&event[kind]["kind"]).unwrap_or_else(|| kind.to_owned())
    };
    match text(&signal["target"]["exec-id"]) {
        Some(exec) => format!("exec {exec}: {what}"),
        None => what,
    }
}

fn oom(kill: &Value) -> String {
    let count = match (kill["added"].as_u64(), kill["total"].as_u64()) {
        (Some(0), _) => return "memory ran out, nothing was killed".to_owned(),
        (Some(added), Some(total)) => format!("OOM kill, counter +{added} to {total}"),
        (None, Some(total)) => format!("OOM kill, counter at {total}"),
        (Some(added), None) => format!("OOM kill, +{added}"),
        (None, None) if kill["evidence"] == "announced" => "an OOM was announced".to_owned(),
        (None, None) => "OOM kill".to_owned(),
    };
    let whole = if kill["group"] == true { ", the whole cgroup" } else { "" };
    let victim = victim(&kill["victim"]).map(|it| format!(", of {it}")).unwrap_or_default();
    format!("{count}{whole}{victim}{}", limit(kill).map(|it| format!(", {it}")).unwrap_or_default())
}

/// Whose limit was hit, and what it is.
pub(crate) fn limit(kill: &Value) -> Option<String> {
    let bytes = kill["limit-bytes"].as_u64();
    let of = bytes.map(|bytes| format!(" of {}", size(bytes))).unwrap_or_default();
    match kill["level"].as_str() {
        Some("container") => Some(format!("at its limit{of}")),
        Some("child") => Some(format!("at a limit within it{of}")),
        Some("ancestor") => Some(format!("at a limit above it, its pod's say{of}")),
        Some("guest") => Some("because the machine had no memory left".to_owned()),
        _ => bytes.map(|bytes| format!("with a limit of {}", size(bytes))),
    }
}

/// The process that the kernel killed.
fn victim(victim: &Value) -> Option<String> {
    let (comm, pid) = (text(&victim["comm"])?, victim["pid"].as_u64()?);
    let role = match victim["is-init"].as_bool() {
        Some(true) => "its init ",
        Some(false) => "a child ",
        None => "",
    };
    Some(format!("{role}{comm} (pid {pid})"))
}

fn exited(exited: &Value) -> String {
    let who = if exited["is-init"] == false { "a process ended: " } else { "" };
    let core = if exited["core"] == true { ", core dumped" } else { "" };
    match (exited["status"].as_u64(), exited["signal"].as_u64()) {
        (status, Some(signal)) => {
            let status = status.map(|it| format!(", status {it}")).unwrap_or_default();
            format!("{who}ended by {}{status}{core}", signal_name(Some(signal)))
        }
        (Some(status), None) => format!("{who}exited with status {status}{core}"),
        (None, None) => format!("{who}ended, with what status is not known"),
    }
}

fn pressure(pressure: &Value) -> String {
    let percent = |it: &Value| {
        let centi = it.as_u64().unwrap_or(0);
        format!("{}.{:02} %", centi / 100, centi % 100)
    };
    let line = if pressure["full"] == true { "full" } else { "some" };
    let stalled = pressure["stalled-us"].as_u64().map(|us| format!(", stalled {} more", span(us / 1_000)));
    let stalled = stalled.unwrap_or_default();
    format!(
        "{} pressure, {line} {} of the last 10 s{stalled}",
        text(&pressure["of"]).unwrap_or_default(),
        percent(&pressure["avg10-centi"])
    )
}

/// What is odd about when it was told.
pub(crate) fn marks(signal: &Value) -> Vec<&'static str> {
    let mut marks = Vec::new();
    if signal["event"]["oom-kill"]["late"] == true {
        marks.push("late");
    }
    if signal["event"]["exited"]["reconciled"] == true {
        marks.push("reconciled");
    }
    marks
}

/// `SIGKILL`, or `signal 40`.
pub(crate) fn signal_name(number: Option<u64>) -> String {
    // signal(7), the numbers that are the same on x86 and ARM.
    const NAMES: [(u64, &str); 12] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
    ];
    let Some(number) = number else { return "a signal".to_owned() };
    let name = NAMES.iter().find(|(it, _)| *it == number);
    name.map_or_else(|| format!("signal {number}"), |(_, name)| (*name).to_owned())
}

/// Bytes, in the largest unit that is whole or nearly.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let tenth = bytes % unit * 10 / unit;
            let tenth = if tenth == 0 { String::new() } else { format!(".{tenth}") };
            return format!("{}{tenth} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(event: &Value, expect: &str) {
        assert_eq!(happened(&json!({ "target": { "exec-id": null }, "event": event })), expect);
    }

    #[test]
    fn every_kind_has_its_sentence_and_says_what_is_not_known() {
        let victim = json!({ "pid": 7, "comm": "sh", "is-init": false });
        let kill = json!({ "added": 1, "total": 3, "level": "container", "limit-bytes": 33_554_432, "victim": victim });
        check(
            &json!({ "oom-kill": kill }),
            "OOM kill, counter +1 to 3, of a child sh (pid 7), at its limit of 32 MiB",
        );
        check(&json!({ "oom-kill": { "added": 0, "total": 3 } }), "memory ran out, nothing was killed");
        check(&json!({ "oom-kill": { "evidence": "announced" } }), "an OOM was announced");
        let guest = json!({ "added": 2, "group": true, "level": "guest" });
        check(
            &json!({ "oom-kill": guest }),
            "OOM kill, +2, the whole cgroup, because the machine had no memory left",
        );
        check(&json!({ "exited": { "status": 137, "signal": 9 } }), "ended by SIGKILL, status 137");
        check(&json!({ "exited": { "status": 1, "is-init": true } }), "exited with status 1");
        check(
            &json!({ "exited": { "status": null, "signal": null } }),
            "ended, with what status is not known",
        );
        let pressure = json!({ "of": "memory", "full": true, "avg10-centi": 1205, "stalled-us": 50_000 });
        check(
            &json!({ "pressure": pressure }),
            "memory pressure, full 12.05 % of the last 10 s, stalled 50 ms more",
        );
        check(
            &json!({ "kill-request": { "signal": 40, "all": true } }),
            "signal 40 was sent through the runtime to all its processes",
        );
        check(&json!({ "guest-lost": { "reason": "gone" } }), "its guest is lost: gone");
        check(&json!({ "other": { "kind": "oom-imminent", "json": "{}" } }), "oom-imminent");
        check(&json!({ "of-tomorrow": {} }), "of-tomorrow");
        let exec = json!({ "target": { "exec-id": "e1" }, "event": { "exited": { "status": 0 } } });
        assert_eq!(happened(&exec), "exec e1: exited with status 0");
    }

    #[test]
    fn sizes_are_in_the_largest_unit() {
        assert_eq!(
            [1, 1 << 10, 33_554_432, 1_610_612_736].map(size),
            ["1 bytes", "1 KiB", "32 MiB", "1.5 GiB"]
        );
    }
}
