//! What goes where, by topic and by kind of signal; and what goes nowhere.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use coroner_tests::scratch::Scratch;
use serde_json::{Value, json};

use super::stand::{Stand, lines, whose};

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

fn metrics(stand: &Stand) -> String {
    let mut stream = UnixStream::connect(stand.router.path("metrics.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn documents_go_once_to_each_sink_that_a_matching_route_names() {
    let mut stand = Stand::reporting(Scratch::new().unwrap(), SINKS).await;
    stand.kill("c1");
    stand.exit("c2");
    stand.dealt_with().await;
    let metrics = metrics(&stand);
    assert!(metrics.contains("coroner_reports_unrouted_total 2"), "{metrics}");
    assert!(metrics.contains(r#"coroner_sink_dropped_total{sink="kills",reason="refused"} 0"#), "{metrics}");
    stand.router.stop().await.unwrap();

    let read = |name: &str| lines(&stand.router.path(name));
    let (reports, kills, all) = (read("reports.jsonl"), read("kills.jsonl"), read("all.jsonl"));
    // Two containers may be on two workers: which is first is in no order.
    let sorted = |documents: &[Value]| {
        let mut found = whose(documents);
        found.sort_unstable();
        found
    };
    assert_eq!(sorted(&reports), ["c1", "c2"]);
    // Nobody knows a namespace here: the route that asks for one matches nothing.
    assert_eq!(sorted(&kills), ["c1"]);
    let events: Vec<_> = all.iter().filter(|it| it["record"].is_null()).cloned().collect();
    assert_eq!(sorted(&events), ["c1", "c2"], "once, though two routes lead there");
    assert!(events.iter().all(|it| it["topic"] == "app-crash"));

    // Both audits are whole, and say where each report went.
    let records: Vec<_> = all.iter().filter(|it| !it["record"].is_null()).cloned().collect();
    assert_eq!(records, lines(&stand.router.path("audit.jsonl")));
    let ruled = records.iter().find(|it| it["signal"]["target"]["container-id"] == "c2").unwrap();
    assert_eq!(
        ruled["delivery"],
        json!([
            {"sink": "reports", "topic": "app-crash", "state": "queued", "because": null},
            {"sink": "all", "topic": "app-crash", "state": "queued", "because": null},
            {"sink": null, "topic": "nobody-listens", "state": "withheld", "because": "no route takes this topic"},
        ])
    );
    let told = records.iter().filter(|it| it["record"] == "delivered");
    let mut sinks: Vec<_> = told.map(|it| it["sink"].as_str().unwrap()).collect();
    sinks.sort_unstable();
    assert_eq!(sinks, ["all", "all", "kills", "reports", "reports"]);
}
