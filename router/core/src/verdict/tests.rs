//! Verdicts on records of each kind of end.

use serde_json::{Value, json};

use super::*;
use crate::audit::Record;
use crate::signal::CauseKind;

/// A `ruled` record of a container in mode `sole`, at this time in milliseconds.
fn record(at: u64, event: Value, actions: Value) -> Value {
    let topic = |action: &Value| if *action == "task-oom" { OOM } else { EXIT };
    let plan = |action: &Value| json!({ "topic": topic(action), "state": "queued", "sink": "containerd" });
    let delivery: Vec<Value> = actions.as_array().unwrap().iter().map(plan).collect();
    json!({
        "record": "ruled", "source": "s", "mode": "sole", "generation": 1, "draft": actions,
        "signal": {
            "id": at.to_string(), "at": { "boot-ns": at * 1_000_000, "received-ms": at },
            "target": { "node": "n", "container-id": "c" }, "event": event, "attributes": []
        },
        "case": { "known": ["oom-writable", "exit-writable"], "oom-sent": false, "exit-sent": false, "attributes": [] },
        "actions": actions, "rulings": [], "delivery": delivery
    })
}

const OOM: &str = "/tasks/oom";
const EXIT: &str = "/tasks/exit";

fn decided(policy: &str, actions: Value) -> Value {
    let decision = json!({ "actions": actions, "because": format!("of {policy}"), "rule": "r" });
    json!({ "policy": policy, "version": "1", "digest": "", "fuel": 0, "ruling": { "decide": decision } })
}

fn kill(is_init: Option<bool>) -> Value {
    let victim = json!({ "pid": 7, "comm": "sh", "is-init": is_init });
    json!({ "oom-kill": { "added": 1, "total": 1, "evidence": "counter", "level": "container", "cgroup": "/pod/c", "limit-bytes": 32 << 20, "victim": victim, "late": false } })
}

fn exited(fields: Value) -> Value {
    let mut exited = json!({ "is-init": true, "reconciled": false });
    exited.as_object_mut().unwrap().append(&mut fields.as_object().unwrap().clone());
    json!({ "exited": exited })
}

fn sigkill() -> Value {
    exited(json!({ "status": 137, "signal": 9 }))
}

fn end(event: Value) -> Value {
    record(9, event, json!([{ "task-exit": null }]))
}

fn verdict(records: &[Value]) -> Verdict {
    let records: Vec<Record> = records.iter().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
    let mut all = DeathRecords::default();
    for record in &records {
        match record {
            Record::Ruled(it) => all.ruled(it),
            Record::Resumed(it) => all.resumed(it),
            Record::Delivered(it) => all.delivered(it),
            Record::Chain(_) | Record::Recovered(_) => {}
        }
    }
    all.verdict()
}

/// The class of an end, its certainty and the reason in CRI.
fn check(records: &[Value], ended_by: EndedBy, certainty: Certainty, reason: Option<CriReason>) {
    let verdict = verdict(records);
    let found = (verdict.ended_by, verdict.certainty, verdict.published.reason);
    assert_eq!(found, (ended_by, certainty, reason), "{verdict:#?}");
}

#[test]
fn each_class_of_end_is_found_with_its_certainty() {
    use Certainty::{Derived, Open, Seen};
    use CriReason::{Completed, Error, OomKilled};
    let oom = |is_init| record(1, kill(is_init), json!(["task-oom"]));
    let caused = |kind: &str, source: &str| {
        let cause = json!({ "kind": kind, "sources": [source], "sender": { "pid": 3, "comm": "bash" } });
        end(exited(json!({ "status": 137, "signal": 9, "cause": cause })))
    };
    check(&[], EndedBy::Nothing, Derived, None);
    check(&[oom(Some(false))], EndedBy::Nothing, Derived, None);
    check(&[end(exited(json!({ "status": 0 })))], EndedBy::Code, Seen, Some(Completed));
    check(&[end(exited(json!({ "status": 3 })))], EndedBy::Code, Seen, Some(Error));
    check(&[oom(Some(false)), end(exited(json!({ "status": 0 })))], EndedBy::Code, Seen, Some(OomKilled));
    check(&[caused("node-process", "trace")], EndedBy::Signal, Seen, Some(Error));
    check(&[caused("runtime", "kill-request")], EndedBy::Signal, Derived, Some(Error));
    check(&[caused("kernel-oom", "trace")], EndedBy::OomKill, Seen, Some(Error));
    check(&[end(sigkill())], EndedBy::Signal, Open, Some(Error));
    check(&[end(exited(json!({ "status": 137 })))], EndedBy::CodeOrSignal, Open, Some(Error));
    check(&[end(exited(json!({})))], EndedBy::CodeOrSignal, Open, Some(Error));
    check(&[oom(Some(true)), end(sigkill())], EndedBy::OomKill, Seen, Some(OomKilled));
    check(&[oom(None), end(sigkill())], EndedBy::Signal, Open, Some(OomKilled));
    let lost = json!({ "guest-lost": { "reason": "link cut" } });
    check(&[record(9, lost, json!([{ "task-exit": 137 }]))], EndedBy::GuestLost, Derived, Some(Error));
    let mut announced = oom(Some(true));
    announced["signal"]["event"]["oom-kill"]["evidence"] = json!("announced");
    check(&[announced, end(sigkill())], EndedBy::OomKill, Derived, Some(OomKilled));
    let mut exec = end(exited(json!({ "status": 0 })));
    exec["signal"]["target"]["exec-id"] = json!("e");
    check(&[exec], EndedBy::Nothing, Derived, None);
}

#[test]
fn sender_and_request_of_a_signal_are_kept() {
    let sender = json!({ "pid": 3, "comm": "bash", "cgroup": "/user" });
    let cause = json!({ "kind": "node-process", "sender": sender, "sources": ["trace"] });
    let exit = verdict(&[end(exited(json!({ "status": 137, "signal": 9, "cause": cause })))]).exit.unwrap();
    let cause = exit.cause.unwrap();
    assert_eq!((cause.kind, cause.sender.unwrap().comm.as_str()), (CauseKind::NodeProcess, "bash"));
    let mut stopped = end(exited(json!({ "status": 137 })));
    stopped["case"]["requests"] = json!([
        [{ "received-ms": 1 }, { "signal": 9, "all": false }],
        [{ "received-ms": 2 }, { "signal": 15, "all": false }],
    ]);
    let stopped = verdict(&[stopped]);
    assert_eq!((stopped.exit.unwrap().requested, stopped.certainty), (Some(9), Certainty::Derived));
}

#[test]
fn time_since_the_kill_is_of_one_machine_only() {
    let mut exit = end(sigkill());
    let after =
        |exit: &Value| verdict(&[record(1, kill(None), json!([])), exit.clone()]).exit.unwrap().after_kill_ns;
    assert_eq!(after(&exit), Some(8_000_000));
    exit["signal"]["target"]["guest"] = json!("vm-1");
    assert_eq!(after(&exit), None);
}

#[test]
fn group_is_one_kill_of_all_its_processes() {
    let mut step = record(2, kill(Some(false)), json!([]));
    step["signal"]["attributes"] = json!([["same-kill", "true"]]);
    step["signal"]["event"]["oom-kill"]["total"] = json!(30);
    let mut exit = end(sigkill());
    let last =
        json!({ "total": 400, "evidence": "counter", "level": "container", "group": true, "late": false });
    exit["case"]["last-kill"] = json!([{ "received-ms": 8 }, last]);
    let first = record(1, kill(Some(false)), json!(["task-oom"]));
    let found = verdict(&[first.clone(), step.clone(), exit]);
    let whole = found.kill.unwrap();
    assert_eq!((found.ended_by, whole.recorded, whole.group), (EndedBy::OomKill, 1, Some(true)));
    assert_eq!(whole.processes, Some(400));
    let running = verdict(&[first, step]).kill.unwrap();
    assert_eq!((running.recorded, running.processes, running.group), (1, Some(30), None));
    let mut within = record(1, kill(Some(false)), json!(["task-oom"]));
    within["signal"]["event"]["oom-kill"]["group"] = json!(true);
    within["signal"]["event"]["oom-kill"]["level"] = json!("child");
    let found = verdict(&[within, end(sigkill())]);
    assert_eq!((found.ended_by, found.kill.unwrap().group), (EndedBy::Signal, None));
}

#[test]
fn kill_has_what_any_of_its_reports_has() {
    let mut first = record(1, kill(None), json!(["task-oom"]));
    let event = &mut first["signal"]["event"]["oom-kill"];
    (event["victim"], event["level"]) = (Value::Null, json!("unknown"));
    let mut step = record(2, kill(Some(true)), json!([]));
    step["signal"]["attributes"] = json!([["same-kill", "true"]]);
    let found = verdict(&[first.clone(), step, end(sigkill())]).kill.unwrap();
    assert_eq!((found.recorded, found.hit_init, found.limit.level), (1, Some(true), Level::Container));
    let found = verdict(&[first, end(sigkill())]).kill.unwrap();
    assert_eq!((found.hit_init, found.limit.level), (None, Level::Unknown));
}

#[test]
fn author_of_an_action_put_it_there_and_is_not_the_last_that_decided() {
    let report = json!({ "report": { "topic": "t", "reason": "", "message": "", "fields": [] } });
    let check = |draft: Value, rulings: Value, expect: Option<&str>| {
        let mut oom = record(1, kill(Some(true)), json!(["task-oom"]));
        (oom["draft"], oom["rulings"]) = (draft, rulings);
        let by = verdict(&[oom]).published.oom.unwrap().by.unwrap();
        assert_eq!(by.policy.as_deref(), expect, "{by:?}");
        assert_eq!(
            by.because,
            Some(expect.map_or_else(
                || "the kernel's OOM kill counter rose by 1".to_owned(),
                |policy| format!("of {policy}"),
            ))
        );
    };
    let (oom, more) = (json!(["task-oom"]), json!(["task-oom", report]));
    let kubernetes = decided("00-kubernetes", oom.clone());
    check(oom.clone(), json!([]), None);
    check(oom.clone(), json!([kubernetes, decided("80-b", more.clone())]), Some("00-kubernetes"));
    check(oom.clone(), json!([decided("80-b", more.clone())]), None);
    let removed = json!([kubernetes, decided("50-x", json!([])), decided("60-y", more)]);
    check(oom, removed, Some("60-y"));
    let mut illegal = record(1, kill(Some(true)), json!(["task-oom"]));
    illegal["illegal"] = json!("2 task-oom");
    illegal["rulings"] = json!([decided("50-x", json!(["task-oom", "task-oom"]))]);
    let by = verdict(&[illegal]).published.oom.unwrap().by.unwrap();
    assert_eq!((by.policy, by.because.unwrap().as_str()), (None, "the ruling is not legal: 2 task-oom"));
}

#[test]
fn published_status_is_the_ruled_one_where_the_router_publishes() {
    let mut exit = end(exited(json!({ "status": 42 })));
    exit["actions"] = json!([{ "task-exit": 0 }]);
    exit["rulings"] = json!([decided("40-map", json!([{ "task-exit": 0 }]))]);
    let published = verdict(&[exit.clone()]).published;
    assert_eq!((published.reason, published.status), (Some(CriReason::Completed), Some(0)));
    let by = published.exit.unwrap();
    assert_eq!((by.by.unwrap().policy.as_deref(), by.delivered), (Some("40-map"), Some(false)));
    exit["delivery"][0]["state"] = json!("withheld");
    let published = verdict(&[exit]).published;
    assert_eq!((published.reason, published.status), (None, None));
    let acked = json!({ "record": "delivered", "id": "1", "sink": "containerd", "topic": OOM, "outcome": "acked", "attempts": 1, "waited-ms": 0 });
    let oom = verdict(&[record(1, kill(None), json!(["task-oom"])), acked]).published.oom.unwrap();
    assert_eq!((oom.sink.as_deref(), oom.delivered), (Some("containerd"), Some(true)));
}

#[test]
fn reason_is_unknown_where_a_shim_may_have_published_a_kill() {
    let beside = |mut record: Value| {
        record["case"]["known"] = json!([]);
        record
    };
    let exit = beside(record(9, sigkill(), json!([])));
    let dropped = beside(record(1, kill(Some(true)), json!([])));
    check(&[dropped, exit.clone()], EndedBy::OomKill, Certainty::Seen, None);
    check(std::slice::from_ref(&exit), EndedBy::Signal, Certainty::Open, Some(CriReason::Error));
    let resumed = json!({ "record": "resumed", "at-ms": 1, "id": "9", "container": "c", "source": "s", "signal": exit["signal"], "topics": [EXIT] });
    let published = verdict(&[resumed]).published;
    assert_eq!((published.reason, published.status), (None, None), "the ruled status is lost");
}

#[test]
fn gaps_are_what_no_record_has() {
    let mut uncounted = end(sigkill());
    uncounted["signal"]["attributes"] = json!([["kills-unknown-because", "cgroup gone"]]);
    let gaps = [Gap::KillCount("cgroup gone".to_owned()), Gap::Cause];
    assert_eq!(verdict(std::slice::from_ref(&uncounted)).unknown, gaps);
    uncounted["signal"]["event"]["exited"]["cause"] = json!({ "kind": "node-process", "sources": ["trace"] });
    assert_eq!(verdict(std::slice::from_ref(&uncounted)).unknown, [], "it is known what ended it");
    uncounted["signal"]["event"] = exited(json!({ "status": 0 }));
    assert_eq!(verdict(&[uncounted]).unknown, [], "a kill does not explain this end");
    assert_eq!(verdict(&[end(exited(json!({ "status": 1 })))]).unknown, []);
    let bare =
        json!({ "oom-kill": { "added": 1, "evidence": "counter", "level": "unknown", "late": false } });
    let gaps = [Gap::Status, Gap::Cause, Gap::Victim, Gap::VictimRole, Gap::Limit, Gap::Evidence];
    assert_eq!(verdict(&[record(1, bare, json!([])), end(exited(json!({})))]).unknown, gaps);
}

mod evidence;
