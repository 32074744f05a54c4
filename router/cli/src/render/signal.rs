//! A signal in text.

use std::time::Duration;

use coroner_core::signal::{
    Cause, CauseKind, Event, Evidence, ExitSignal, Exited, KERNEL_LOG, KILLS_UNKNOWN, KillRequest, Level,
    OOM_TRACE, OomKilled, POD_COUNTER, Pressure, PressureOf, SAME_KILL, Signal, Target, Victim, WITNESS,
};
use coroner_core::verdict::LimitFacts;

use super::time::{short_id, size, span};

/// What the signal reports.
pub(crate) fn happened(signal: &Signal) -> String {
    let what = match &signal.event {
        Event::OomKill(kill) if attribute(signal, SAME_KILL).is_some() => more(kill),
        Event::OomKill(kill) => oom(kill, attribute(signal, WITNESS)),
        Event::Exited(it) => match attribute(signal, KILLS_UNKNOWN) {
            Some(because) => format!("{}, OOM kills not counted: {because}", exited(it)),
            None => exited(it),
        },
        Event::Pressure(it) => pressure(it),
        Event::KillRequest(KillRequest { signal, all }) => {
            let all = if *all { " to all its processes" } else { "" };
            format!("{} was sent through the runtime{all}", signal_name(*signal))
        }
        Event::GuestLost(lost) => format!("its guest is lost: {}", lost.reason),
        Event::Evidence(_) => "the evidence of its OOM kill".to_owned(),
        Event::Other(other) => other.kind.clone(),
        Event::Forwarded(event) => format!("its shim published {}", event.topic),
    };
    match &signal.target.exec_id {
        Some(exec) => format!("exec {exec}: {what}"),
        None => what,
    }
}

/// The value of an attribute of the signal.
pub(crate) fn attribute<'a>(signal: &'a Signal, name: &str) -> Option<&'a str> {
    signal.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn oom(kill: &OomKilled, witness: Option<&str>) -> String {
    let count = match (kill.added, kill.total) {
        (Some(added), _) if witness == Some(KERNEL_LOG) => format!("OOM kill, +{added} by the kernel's log"),
        (Some(added), _) if witness == Some(OOM_TRACE) => {
            format!("OOM kill, +{added} by the kernel's trace")
        }
        (Some(added), _) if witness == Some(POD_COUNTER) => {
            format!("OOM kill, +{added} by its pod's counter")
        }
        (Some(0), _) => return "memory ran out, nothing was killed".to_owned(),
        (Some(added), Some(total)) => format!("OOM kill, counter +{added} to {total}"),
        (None, Some(total)) => format!("OOM kill, counter at {total}"),
        (Some(added), None) => format!("OOM kill, +{added}"),
        (None, None) if kill.evidence == Evidence::Announced => "an OOM was announced".to_owned(),
        (None, None) => "OOM kill".to_owned(),
    };
    let whole = if kill.group == Some(true) { ", the whole cgroup" } else { "" };
    let victim = kill.victim.as_ref().map(|it| format!(", of {}", victim(it))).unwrap_or_default();
    format!(
        "{count}{whole}{victim}{}",
        limit(&LimitFacts::from(kill)).map(|it| format!(", {it}")).unwrap_or_default()
    )
}

/// More processes of the kill before, or more that is known of it.
fn more(kill: &OomKilled) -> String {
    let victim = kill.victim.as_ref().map(|it| format!(", of {}", victim(it))).unwrap_or_default();
    if kill.added == Some(0) {
        let at = limit(&LimitFacts::from(kill)).map(|it| format!(", {it}")).unwrap_or_default();
        return format!("more of the same OOM kill{victim}{at}");
    }
    let to = kill.total.map(|total| format!(" to {total}")).unwrap_or_default();
    format!("more of the same OOM kill, counter +{}{to}", kill.added.unwrap_or(0))
}

/// The limit that was hit: its cgroup and its bytes. The container's own limit is not shown as
/// another's.
pub(crate) fn limit(limit: &LimitFacts) -> Option<String> {
    let of = |bytes: Option<u64>| bytes.map(|it| format!(" of {}", size(it))).unwrap_or_default();
    let hit = of(limit.bytes);
    let path = limit.cgroup.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
    match limit.level {
        Level::Container => Some(format!("at its limit{}", of(limit.bytes.or(limit.own_bytes)))),
        Level::Child => Some(format!("at a limit{hit} within it{path}")),
        Level::Ancestor if path.is_empty() => Some("at a limit above it, such as its pod's".to_owned()),
        Level::Ancestor => Some(format!("at the limit{hit} of a cgroup above it{path}")),
        Level::Guest => Some("because the machine had no memory left".to_owned()),
        Level::Unknown => limit.own_bytes.map(|bytes| format!("with a limit of {}", size(bytes))),
    }
}

fn victim(victim: &Victim) -> String {
    let role = match victim.is_init {
        Some(true) => "its init ",
        Some(false) => "a child ",
        None => "",
    };
    format!("{role}{} (pid {})", victim.comm, victim.pid)
}

fn exited(exited: &Exited) -> String {
    let process = if exited.is_init == Some(false) { "a process ended: " } else { "" };
    let core = if exited.core == Some(true) { ", core dumped" } else { "" };
    match (exited.status, exited.exit_signal()) {
        (status, ExitSignal::Some(signal)) => {
            let status = status.map(|it| format!(", status {it}")).unwrap_or_default();
            let sent = exited.cause.as_ref().and_then(cause).map(|it| format!(", {it}")).unwrap_or_default();
            format!("{process}ended by {}{status}{sent}{core}", signal_name(signal))
        }
        (Some(status), ExitSignal::None) => format!("{process}exited with status {status}"),
        (Some(status), ExitSignal::Unknown) => format!("{process}ended with status {status}"),
        (None, _) => format!("{process}ended, with what status is not known"),
    }
}

/// What sent the signal that ended it; `None`: nothing is known of it.
pub(crate) fn cause(cause: &Cause) -> Option<String> {
    let sender = cause.sender.as_ref().map(|it| format!("{} (pid {})", it.comm, it.pid));
    let by = |default: &str| sender.clone().unwrap_or_else(|| default.to_owned());
    Some(match cause.kind {
        CauseKind::Unknown => format!("sent by {}", sender?),
        CauseKind::KernelOom => "by the kernel's OOM killer".to_owned(),
        CauseKind::Runtime => match sender {
            Some(sender) => format!("sent by {sender} of the container runtime"),
            None => "sent through the container runtime".to_owned(),
        },
        CauseKind::ContainerProcess => format!("sent by {} of the container", by("a process")),
        CauseKind::NodeProcess => format!("sent by {} outside of the container", by("a process")),
        CauseKind::Oomd => "by systemd-oomd".to_owned(),
        CauseKind::OomPolicy => "by systemd, which stopped its unit after an OOM kill".to_owned(),
        CauseKind::CgroupKill => format!("by {} through cgroup.kill", by("a process")),
        CauseKind::Seccomp => "for a forbidden system call".to_owned(),
        CauseKind::ResourceLimit => "at a resource limit of the process".to_owned(),
        CauseKind::Crash => "by a fault of its own".to_owned(),
        CauseKind::Kernel => "by the kernel".to_owned(),
    })
}

fn pressure(pressure: &Pressure) -> String {
    let of = match pressure.of {
        PressureOf::Memory => "memory",
        PressureOf::Cpu => "cpu",
        PressureOf::Io => "io",
    };
    let line = if pressure.full { "full" } else { "some" };
    let stalled = pressure.stalled_us.map(|us| format!(", stalled {} more", span(Duration::from_micros(us))));
    let (whole, hundredths) = (pressure.avg10_centi / 100, pressure.avg10_centi % 100);
    let stalled = stalled.unwrap_or_default();
    format!("{of} pressure, {line} {whole}.{hundredths:02} % of the last 10 s{stalled}")
}

/// What is unusual about when it was reported.
pub(crate) fn marks(signal: &Signal) -> Option<&'static str> {
    match &signal.event {
        Event::OomKill(kill) if kill.late => Some("late"),
        Event::Exited(exited) if exited.reconciled => Some("reconciled"),
        _ => None,
    }
}

/// `SIGKILL`, or `signal 40`.
pub(crate) fn signal_name(number: u8) -> String {
    // signal(7), the numbers that are the same on x86 and ARM.
    const NAMES: [(u8, &str); 16] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (5, "SIGTRAP"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    let name = NAMES.iter().find(|(it, _)| *it == number);
    name.map_or_else(|| format!("signal {number}"), |(_, name)| (*name).to_owned())
}

/// `namespace/pod/container`, as far as it is known; else the start of the id.
pub(crate) fn container_name(target: &Target) -> String {
    let owner = target.owner.as_ref();
    let names = owner.map(|it| [&it.namespace, &it.pod, &it.container]);
    match names.filter(|names| names.iter().any(|name| name.is_some())) {
        None => short_id(target.container_id.as_str()),
        Some(names) => names.map(|name| name.as_deref().unwrap_or("?")).join("/"),
    }
}

/// The container in a signal's id: `node:guest:stream:container:seq`.
pub(crate) fn container_of(id: &str) -> Option<&str> {
    id.rsplit(':').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A signal of this event, which is given as in an audit record.
    fn signal(event: &Value) -> Signal {
        let target = json!({ "node": "n", "container-id": "0123456789abcdef" });
        let at = json!({ "received-ms": 0 });
        let signal = json!({ "id": "i", "at": at, "target": target, "event": event, "attributes": [] });
        serde_json::from_value(signal).unwrap()
    }

    fn check(event: &Value, expect: &str) {
        assert_eq!(happened(&signal(event)), expect);
    }

    fn kill(fields: &Value) -> Value {
        let mut kill = json!({ "evidence": "counter", "level": "unknown", "late": false });
        kill.as_object_mut().unwrap().append(&mut fields.as_object().unwrap().clone());
        json!({ "oom-kill": kill })
    }

    #[test]
    fn oom_kill_names_counter_victim_and_limit() {
        let victim = json!({ "pid": 7, "comm": "sh", "is-init": false });
        let whole = json!({ "added": 1, "total": 3, "level": "container", "limit-bytes": 33_554_432, "victim": victim });
        check(&kill(&whole), "OOM kill, counter +1 to 3, of a child sh (pid 7), at its limit of 32 MiB");
        check(&kill(&json!({ "added": 0, "total": 3 })), "memory ran out, nothing was killed");
        check(&kill(&json!({ "evidence": "announced" })), "an OOM was announced");
        let guest = json!({ "added": 2, "group": true, "level": "guest" });
        let expect = "OOM kill, +2, the whole cgroup, because the machine had no memory left";
        check(&kill(&guest), expect);
        let above = json!({ "total": 1, "level": "ancestor", "limit-bytes": 1 << 30 });
        check(&kill(&above), "OOM kill, counter at 1, at a limit above it, such as its pod's");
        let above = json!({ "total": 1, "level": "ancestor", "limit-bytes": 1 << 30, "limit-cgroup": "/pod1", "limit-cgroup-bytes": 1 << 27 });
        let expect = "OOM kill, counter at 1, at the limit of 128 MiB of a cgroup above it (/pod1)";
        check(&kill(&above), expect);
    }

    #[test]
    fn unknown_fact_is_omitted_or_named() {
        let exited = |status: Option<u32>, signal: Option<u8>| json!({ "exited": { "status": status, "signal": signal, "reconciled": false } });
        check(&exited(Some(137), Some(9)), "ended by SIGKILL, status 137");
        check(&exited(Some(1), None), "exited with status 1");
        check(&exited(Some(137), None), "ended with status 137");
        let code = json!({ "status": 137, "by-signal": false, "reconciled": false });
        check(&json!({ "exited": code }), "exited with status 137");
        let cause = json!({ "kind": "node-process", "sender": { "pid": 7, "comm": "bash" }, "sources": [] });
        let sent = json!({ "status": 137, "signal": 9, "cause": cause, "reconciled": false });
        let expect = "ended by SIGKILL, status 137, sent by bash (pid 7) outside of the container";
        check(&json!({ "exited": sent }), expect);
        check(&exited(None, None), "ended, with what status is not known");
        let pressure = json!({ "of": "memory", "full": true, "avg10-centi": 1205, "avg60-centi": 0, "total-us": 0, "stalled-us": 50_000 });
        check(
            &json!({ "pressure": pressure }),
            "memory pressure, full 12.05 % of the last 10 s, stalled 50 ms more",
        );
        let request = json!({ "kill-request": { "signal": 40, "all": true } });
        check(&request, "signal 40 was sent through the runtime to all its processes");
        check(&json!({ "guest-lost": { "reason": "gone" } }), "its guest is lost: gone");
        check(&json!({ "other": { "kind": "oom-imminent", "json": "{}" } }), "oom-imminent");
        let mut exec = signal(&exited(Some(0), None));
        exec.target.exec_id = Some("e1".to_owned());
        assert_eq!(happened(&exec), "exec e1: exited with status 0");
    }

    #[test]
    fn container_without_owner_is_named_by_its_id() {
        let mut target = signal(&json!({ "guest-lost": { "reason": "" } })).target;
        assert_eq!(container_name(&target), "0123456789ab");
        target.owner = serde_json::from_value(json!({ "pod": "web" })).unwrap();
        assert_eq!(container_name(&target), "?/web/?");
        assert_eq!(container_of("n:vm:stream:web-1:42"), Some("web-1"));
        assert_eq!(container_of("n:stream:web-1:42"), Some("web-1"), "version 2");
    }
}
