//! The demo's recording, and what may be different in other records.

use serde_json::{Value, json};

use super::*;
use crate::explain::fixtures::POD_LIMIT;
use crate::explain::reading::verdict;
use crate::render::record::read;

static RECORDING: &str = include_str!("../../demo/recording.jsonl");

fn entries(records: &[Value]) -> Vec<RecordLine> {
    records.iter().map(|it| read(&it.to_string()).unwrap()).collect()
}

fn texts(records: &[Value]) -> Vec<String> {
    let lines = Timeline::default().of(&entries(records));
    let text = |it: StoryLine| format!("{}{}", if it.at.is_some() { "* " } else { "" }, it.text);
    lines.into_iter().map(text).collect()
}

fn recording() -> Vec<Value> {
    RECORDING.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn recording_is_shown_in_order_below_its_verdict() {
    assert_eq!(
        texts(&recording()),
        [
            "* OOM kill, counter +1 to 1, of a child demo-victim (pid 22584), at its limit of 32 MiB",
            "00-kubernetes 0.1.0: task-oom, because the kernel's OOM kill counter rose by 1",
            "/tasks/oom queued for containerd",
            "* containerd took /tasks/oom: 1 try, 0 ms",
            "* exited with status 1",
            "00-kubernetes 0.1.0: task-exit, because the container ended: its real status",
            "/tasks/exit queued for containerd",
            "* containerd took /tasks/exit: 1 try, 0 ms",
        ]
    );
    let lines: Vec<String> = RECORDING.lines().map(str::to_owned).collect();
    let reading = ReadRecords::of("c", &lines, 3, vec!["a".to_owned(), "b".to_owned()]);
    let story = Story::of(&reading);
    let head: Vec<String> = story.head.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(
        head,
        [
            "container: c",
            "memory: limit 32 MiB",
            "node: demo; source demo, mode sole",
            "left out: 3 earlier records",
            "others: 2 before it of the same name: b, a",
            "verdict: exited 1, 4 ms after an OOM kill of a child (demo-victim) at its limit of 32 MiB; containerd knows of the kill",
        ]
    );
    assert!(reading.unread.is_empty(), "{:?}", reading.unread);
    let mut screen = Screen::plain();
    story.print(&mut screen);
    insta::assert_snapshot!(screen.text());
}

#[test]
fn times_do_not_go_back_and_are_rounded_once() {
    let mut records = recording();
    let received = records[0]["signal"]["at"]["received-ms"].as_u64().unwrap();
    // The exit was received while the kill was not delivered yet, and ruled after that.
    records[1]["waited-ms"] = json!(1_199);
    records[2]["signal"]["at"]["received-ms"] = json!(received + 100);
    records[3]["waited-ms"] = json!(1_000);
    let lines = Timeline::default().of(&entries(&records));
    let times: Vec<u64> = lines.iter().filter_map(|it| it.at).map(|at| at - received).collect();
    assert_eq!(times, [0, 100, 1_199, 1_199], "a delivery is not before those written before it");
    records.swap(1, 2);
    records.truncate(3);
    records.remove(1);
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let mut screen = Screen::plain();
    Story::of(&ReadRecords::of("c", &lines, 0, Vec::new())).print(&mut screen);
    let last = screen.text().lines().last().unwrap();
    assert!(last.contains(" +1.2 s  containerd took") && last.ends_with("1 try, 1.2 s"), "{last}");
}

#[test]
fn journal_adds_what_the_audit_lacks() {
    let mut records = recording();
    let known = records.iter().find(|it| it["record"] == "ruled").unwrap()["signal"].clone();
    let mut other = known.clone();
    other["id"] = "n::s:c:99".into();
    other["at"]["received-ms"] = json!(1_800_000_000_000_u64);
    let journaled = |signal: &Value, state: &str| json!({ "record": "journaled", "state": state, "id": signal["id"], "container": "c", "source": "demo", "signal": signal });
    records.push(journaled(&known, "done"));
    let before = texts(&records).len();
    records.push(journaled(&other, "accepted"));
    records.push(journaled(&known, "ruled"));
    let texts = texts(&records);
    assert_eq!(texts.len(), before + 2, "{texts:#?}");
    assert!(texts[before].ends_with("[in the journal: not ruled yet]"), "{texts:#?}");
    assert_eq!(texts[before + 1], "in the journal: ruled, and not delivered yet");
}

#[test]
fn resumed_ruling_is_shown_though_its_record_is_lost() {
    let all = recording();
    let resumed = |signal: &Value, topic: &str| json!({ "v": 3, "record": "resumed", "at-ms": 1_795_490_300_000_u64, "id": signal["id"], "container": "c", "source": "demo", "signal": signal, "topics": [topic] });
    let (kill, exit) = (&all[0]["signal"], &all[2]["signal"]);
    let records = [
        resumed(kill, "/tasks/oom"),
        all[1].clone(),
        all[2].clone(),
        resumed(exit, "/tasks/exit"),
        all[3].clone(),
    ];
    let shown = texts(&records);
    let headings: Vec<&str> = shown.iter().filter_map(|it| it.strip_prefix("* ")).collect();
    assert_eq!(
        headings,
        [
            "OOM kill, counter +1 to 1, of a child demo-victim (pid 22584), at its limit of 32 MiB [ruled before the router died]",
            "exited with status 1",
            "delivery resumed: /tasks/oom",
            "containerd took /tasks/oom: 1 try, 0 ms",
            "delivery resumed: /tasks/exit",
            "containerd took /tasks/exit: 1 try, 0 ms",
        ],
        "{shown:#?}"
    );
    let verdict = sentence(&verdict(&entries(&records)));
    assert!(verdict.contains("exited 1, 4 ms after an OOM kill of a child"), "{verdict}");
    let damaged = json!({ "record": "resumed", "at-ms": 1, "id": "n::s:c:9", "container": "c", "source": "demo", "signal": null, "topics": ["/tasks/oom"] });
    assert_eq!(texts(&[damaged]), ["* delivery resumed: /tasks/oom"]);
}

#[test]
fn repeated_late_and_unsent_are_marked() {
    let mut records = recording();
    records[2]["signal"]["at"]["wall-ms"] = json!(7);
    records[1]["outcome"] = json!("unsent");
    records[1]["error"] = json!("connection refused");
    let mut again = records[0].clone();
    again["signal"]["at"]["received-ms"] =
        json!(again["signal"]["at"]["received-ms"].as_u64().unwrap() + 10_000);
    let mut acked = recording()[1].clone();
    acked["attempts"] = json!(3);
    let mut repeated = acked.clone();
    repeated["outcome"] = json!("repeated");
    let mut exit = records[2].clone();
    exit["signal"]["event"]["exited"]["reconciled"] = json!(true);
    let lines = texts(&[records[0].clone(), records[1].clone(), again, acked.clone(), acked, repeated, exit]);
    for due in [
        "* /tasks/oom is not at containerd yet, the router stopped first: 1 try, 0 ms; last error: connection refused",
        "* OOM kill, counter +1 to 1, of a child demo-victim (pid 22584), at its limit of 32 MiB [repeated, under the same id] [by its own clock 10.0 s before]",
        "ruled as before: 00-kubernetes: task-oom, because the kernel's OOM kill counter rose by 1",
        "* containerd took /tasks/oom: 3 tries, 0 ms",
        "* containerd took /tasks/oom: 3 tries, 0 ms [again, the same event id]",
        "* containerd was sent /tasks/oom once more, after it was restarted: 3 tries",
        "* exited with status 1 [reconciled]",
    ] {
        assert!(lines.iter().any(|line| line == due), "{due}\nis not in {lines:#?}");
    }
}

#[test]
fn record_of_another_version_is_left_out_and_named() {
    let line = RECORDING.lines().next().unwrap().replacen("\"v\":1", "\"v\":9", 1);
    let reading = ReadRecords::of("c", &[line.replacen("sole", "of-tomorrow", 1)], 0, Vec::new());
    assert!(Story::of(&reading).lines.is_empty());
    let unread = &reading.unread;
    assert!(unread[0].starts_with("a record of version 9 cannot be read"), "{unread:?}");
}

#[test]
fn evidence_on_the_page_of_operations_is_as_printed() {
    let page = include_str!("../../../../../docs/operating/operations.md");
    let lines: Vec<String> = POD_LIMIT.lines().map(str::to_owned).collect();
    let (id, _) = POD_LIMIT.split_once("\"container-id\":\"").unwrap().1.split_once('"').unwrap();
    let mut screen = Screen::plain();
    Story::of(&ReadRecords::of(id, &lines, 0, Vec::new())).print(&mut screen);
    let (head, _) = screen.text().split_once("\n\n").unwrap();
    let example = format!("$ coroner explain batch/report-5d2f/renderer\n{head}\n```");
    assert!(page.contains(&example), "{example}");
}
