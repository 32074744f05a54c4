//! What goes where, by topic and by kind of signal; and what goes nowhere.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use coroner_tests::scratch::Scratch;
use serde_json::{Value, json};

use super::fixture::{Fixture, lines, subjects};

const SINKS: &str = r#"
    [[sink]]
    name = "reports"
    type = "jsonl"
    path = "@DIR@/reports.jsonl"
    [[sink]]
    name = "kills"
    type = "jsonl"
    path = "@DIR@/kills.jsonl"
    [[sink]]
    name = "all"
    type = "jsonl"
    path = "@DIR@/all.jsonl"
    [[route]]
    topics = ["app-*"]
    sinks = ["reports", "all"]
    [[route]]
    topics = ["app-crash"]
    kinds = ["oom-kill"]
    sinks = ["kills", "all"]
    [[route]]
    topics = ["audit"]
    sinks = ["all"]
    [[route]]
    topics = ["app-*"]
    namespaces = ["*"]
    sinks = ["kills"]
"#;

fn metrics(fixture: &Fixture) -> String {
    let mut stream = UnixStream::connect(fixture.router.path("metrics.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn documents_are_sent_once_to_each_sink_of_matching_routes() {
    let mut fixture = Fixture::reporting(Scratch::new().unwrap(), SINKS).await;
    fixture.kill("c1");
    fixture.exit("c2");
    fixture.dealt_with().await;
    let metrics = metrics(&fixture);
    assert!(metrics.contains("coroner_reports_unrouted_total 2"), "{metrics}");
    assert!(metrics.contains(r#"coroner_sink_dropped_total{sink="kills",reason="refused"} 0"#), "{metrics}");
    fixture.router.stop().await.unwrap();

    let read = |name: &str| lines(&fixture.router.path(name));
    let (reports, kills, all) = (read("reports.jsonl"), read("kills.jsonl"), read("all.jsonl"));
    // Two containers may be on two workers: which is first is in no order.
    let sorted = |documents: &[Value]| {
        let mut found = subjects(documents);
        found.sort_unstable();
        found
    };
    assert_eq!(sorted(&reports), ["c1", "c2"]);
    // No namespace is known here: the route that requires one matches nothing.
    assert_eq!(sorted(&kills), ["c1"]);
    let events: Vec<_> = all.iter().filter(|it| it["record"].is_null()).cloned().collect();
    assert_eq!(sorted(&events), ["c1", "c2"], "once, though two routes lead there");
    assert!(events.iter().all(|it| it["topic"] == "app-crash"));

    // Both audits are whole, and record where each report went. Lines of different sinks' lanes are
    // in no order.
    let records: Vec<_> = all.iter().filter(|it| !it["record"].is_null()).cloned().collect();
    let unordered = |records: &[Value]| {
        let mut lines: Vec<String> = records.iter().map(Value::to_string).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(unordered(&records), unordered(&lines(&fixture.router.path("audit.jsonl"))));
    let ruled = records.iter().find(|it| it["signal"]["target"]["container-id"] == "c2").unwrap();
    assert_eq!(
        ruled["delivery"],
        json!([
            {"sink": "reports", "topic": "app-crash", "state": "queued", "because": null},
            {"sink": "all", "topic": "app-crash", "state": "queued", "because": null},
            {"sink": null, "topic": "nobody-listens", "state": "withheld", "because": "no route takes this topic"},
        ])
    );
    let delivered = records.iter().filter(|it| it["record"] == "delivered");
    let mut sinks: Vec<_> = delivered.map(|it| it["sink"].as_str().unwrap()).collect();
    sinks.sort_unstable();
    assert_eq!(sinks, ["all", "all", "kills", "reports", "reports"]);
}
