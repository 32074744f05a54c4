//! What the evidence of a kill adds to its verdict.

use super::*;

const MIB: u64 = 1 << 20;

/// A kill at the pod's limit of 512 MiB, of a process of 12 MiB, with these children of the pod's
/// cgroup after it.
fn at_pod(own: u64, children: &[(&str, u64)]) -> Value {
    let cgroup = |path: &str, usage: u64| json!({ "path": path, "usage-bytes": usage, "limit": { "bytes": 512 * MIB } });
    let mut pod = cgroup("/pod", 500 * MIB);
    pod["children"] = json!(children);
    let victim = json!({ "pid": 7, "comm": "sh", "total-vm-bytes": 0, "anon-bytes": 10 * MIB, "file-bytes": MIB, "shmem-bytes": MIB });
    let usage = json!([{ "name": "memory", "usage-bytes": 512 * MIB, "limit-bytes": 512 * MIB }]);
    let report = json!({ "limit-cgroup": "/pod", "usage": usage, "victims": [victim], "incomplete": false });
    json!({ "evidence": {
        "kill": "1", "detail": "full", "report": report, "cgroups": [cgroup("/pod/c", own), pod], "left-out": 0
    } })
}

/// A kill of which the signal has neither level nor victim.
fn bare() -> Value {
    let kill = json!({ "added": 1, "total": 1, "evidence": "counter", "level": "unknown", "cgroup": "/pod/c", "late": false });
    record(1, json!({ "oom-kill": kill }), json!(["task-oom"]))
}

fn after(evidence: Value) -> Verdict {
    verdict(&[bare(), record(2, evidence, json!([])), end(sigkill())])
}

#[test]
fn evidence_adds_limit_and_victim_to_the_kill() {
    let found = after(at_pod(0, &[]));
    assert_eq!(found.limit_memory().unwrap().usage_bytes, Some(500 * MIB));
    let gaps = [Gap::Cause, Gap::VictimRole, Gap::Samples];
    assert_eq!(found.unknown, gaps);
    let kill = found.kill.unwrap();
    let limit = (kill.limit.level, kill.limit.cgroup.as_deref(), kill.limit.bytes);
    assert_eq!(limit, (Level::Ancestor, Some("/pod"), Some(512 * MIB)));
    let victim = kill.victim.unwrap();
    assert_eq!((victim.pid, victim.memory.unwrap().bytes()), (7, 12 * MIB));
    assert_eq!(kill.shares, None, "nothing below the limit was read");
}

#[test]
fn group_in_the_report_is_the_container_unless_the_limit_is_within_it() {
    let group = |level: &str| {
        let mut kill = bare();
        kill["signal"]["event"]["oom-kill"]["level"] = json!(level);
        let mut evidence = at_pod(0, &[]);
        evidence["evidence"]["report"]["group"] = json!(true);
        verdict(&[kill, record(2, evidence, json!([]))]).kill.unwrap().group
    };
    assert_eq!((group("container"), group("child")), (Some(true), None));
}

#[test]
fn neighbour_took_the_memory_only_where_that_is_proven() {
    let check = |own: u64, children: &[(&str, u64)], expect: Option<&str>| {
        let shares = after(at_pod(own, children)).kill.unwrap().shares.unwrap();
        assert_eq!(shares.taken_by.as_ref().map(|it| it.cgroup.as_str()), expect, "{shares:?}");
    };
    let own = ("/pod/c", 0);
    check(0, &[("/pod/taker", 480 * MIB), own], Some("/pod/taker"));
    check(0, &[("/pod/taker", 200 * MIB), own], None);
    check(469 * MIB, &[("/pod/taker", 480 * MIB), ("/pod/c", 469 * MIB)], None);
    // The container's cgroup was gone: what its processes had at the kill is not known.
    let gone = |anonymous: u64, cgroup: Option<&str>| {
        let mut evidence = at_pod(0, &[("/pod/taker", 480 * MIB), own]);
        evidence["evidence"]["cgroups"][0].as_object_mut().unwrap().remove("usage-bytes");
        let process = json!({
            "pid": 9, "uid": 0, "total-vm-bytes": 0, "rss-bytes": 490 * MIB, "anon-bytes": anonymous,
            "page-table-bytes": 0, "swap-bytes": 0, "score-adj": 0, "cgroup": cgroup
        });
        evidence["evidence"]["report"]["processes"] = json!([process]);
        let shares = after(evidence).kill.unwrap().shares.unwrap();
        assert_eq!(shares.own.usage_bytes, None);
        shares.taken_by.is_some()
    };
    assert!(gone(300 * MIB, Some("/pod/taker")) && gone(300 * MIB, Some("/pod/taker/job")));
    assert!(!gone(300 * MIB, Some("/pod/taker2")) && !gone(300 * MIB, None));
    assert!(!gone(200 * MIB, Some("/pod/taker")), "less than half of the limit");
    let unknown = json!({ "kill": "1", "detail": "full", "report": null, "cgroups": at_pod(0, &[("/pod/taker", 480 * MIB)])["evidence"]["cgroups"], "left-out": 0 });
    let mut kill = bare();
    kill["signal"]["event"]["oom-kill"]["limit-cgroup"] = json!("/pod");
    let found = verdict(&[kill, record(2, json!({ "evidence": unknown }), json!([]))]);
    let shares = found.kill.unwrap().shares.unwrap();
    assert_eq!((shares.taken_by, shares.own.killed_bytes), (None, None), "the victim may have had more");
    assert_eq!(shares.own.usage_bytes, Some(0));
}

#[test]
fn evidence_of_an_earlier_kill_is_not_of_the_last() {
    let second = |id: &str| {
        let mut kill = bare();
        kill["signal"]["id"] = json!(id);
        kill
    };
    let of = |kill: &str| {
        let mut evidence = at_pod(0, &[]);
        evidence["evidence"]["kill"] = json!(kill);
        record(3, evidence, json!([]))
    };
    let has = |records: &[Value]| verdict(records).evidence.map(|it| it.kill.clone());
    assert_eq!(has(&[bare(), of("1"), second("2")]), None);
    assert_eq!(has(&[bare(), second("2"), of("1")]), None);
    assert_eq!(has(&[bare(), second("2"), of("1"), of("2")]).as_deref(), Some("2"));
    let mut step = second("2");
    step["signal"]["attributes"] = json!([["same-kill", "true"]]);
    assert_eq!(has(&[bare(), step, of("2")]).as_deref(), Some("2"));
    assert_eq!(has(&[bare(), of("of-another-source")]).as_deref(), Some("of-another-source"));
}

#[test]
fn gaps_of_evidence_are_listed() {
    let mut evidence = at_pod(0, &[]);
    evidence["evidence"]["detail"] = json!("counts");
    evidence["evidence"]["left-out"] = json!(3);
    evidence["evidence"]["report"]["incomplete"] = json!(true);
    evidence["evidence"]["report"]["victims"] = json!([]);
    let gaps = after(evidence).unknown;
    for gap in [Gap::PartsOfKernelReport, Gap::VictimSize, Gap::ProcessNames, Gap::Samples, Gap::LeftOut(3)] {
        assert!(gaps.contains(&gap), "{gap:?} is not in {gaps:?}");
    }
    let mut evidence = at_pod(0, &[]);
    evidence["evidence"]["report"] = Value::Null;
    assert!(after(evidence).unknown.contains(&Gap::KernelReport));
}
