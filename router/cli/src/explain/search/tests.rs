//! Searches in lines that are as short as a search may need.

use serde_json::json;

use super::*;

fn ruled(container: &str, pod: &str, at: u64) -> String {
    let owner = json!({ "namespace": "shop", "pod": pod, "container": "app" });
    let target = json!({ "container-id": container, "owner": owner });
    let id = format!("n::s:{container}:{at}");
    json!({ "record": "ruled", "signal": { "id": id, "at": { "received-ms": at }, "target": target } })
        .to_string()
}

fn delivered(container: &str, at: u64) -> String {
    json!({ "record": "delivered", "id": format!("n::s:{container}:{at}") }).to_string()
}

fn one(text: &str, lines: &[String]) -> (String, usize, Vec<String>) {
    let mut search = Search::new(text).unwrap();
    assert!(lines.iter().all(|line| search.take(line)));
    let Found::One { container, records, others, .. } = search.found() else { panic!("not one is {text}") };
    (container, records.len(), others)
}

#[test]
fn container_is_found_by_id_its_start_and_name() {
    let lines = [
        ruled("abc1", "web", 1),
        ruled("abd1", "job", 2),
        delivered("abc1", 1),
        ruled("abc1", "web", 3),
        delivered("abd1", 2),
        ruled("abc2", "web", 4),
        delivered("abc1", 3),
        delivered("abc2", 4),
        ruled("ab", "tiny", 5),
    ];
    assert_eq!(one("abc1", &lines), ("abc1".to_owned(), 4, vec![]));
    assert_eq!(one("abd", &lines), ("abd1".to_owned(), 2, vec![]));
    assert_eq!(
        one("ab", &lines),
        ("ab".to_owned(), 1, vec![]),
        "an id in full is one, whichever others begin so"
    );
    assert_eq!(one("shop/web/app", &lines), ("abc2".to_owned(), 2, vec!["abc1".to_owned()]), "the latest");
    assert_eq!(one("shop/job/app", &lines), ("abd1".to_owned(), 2, vec![]));
    let found = |text: &str| {
        let mut search = Search::new(text).unwrap();
        lines.iter().for_each(|line| assert!(search.take(line)));
        search.found()
    };
    assert!(matches!(found("abc"), Found::Several(ids) if ids == ["abc1", "abc2"]));
    assert!(matches!(found("shop/web/sidecar"), Found::Nothing));
    assert!(matches!(found("zz"), Found::Nothing));
    for wrong in ["", "a/b", "a//c", "a/b/c/d"] {
        assert!(Search::new(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn record_of_two_sinks_is_kept_once() {
    let mut search = Search::new("a").unwrap();
    search.begin();
    for line in [ruled("a", "web", 1), delivered("a", 1), delivered("a", 1)] {
        search.take(&line);
    }
    search.begin();
    for line in
        [ruled("a", "web", 1), delivered("a", 1), delivered("a", 1), delivered("a", 1), ruled("a", "web", 2)]
    {
        search.take(&line);
    }
    let Found::One { records, .. } = search.found() else { panic!("one is found") };
    assert_eq!(records.len(), 4);
}

#[test]
fn starts_of_the_router_between_records_are_kept() {
    let start = |at: u64| format!("{{\"v\":3,\"record\":\"recovered\",\"at-ms\":{at}}}");
    let lines = [
        start(1),
        ruled("a", "web", 1),
        start(2),
        ruled("b", "job", 1),
        start(3),
        delivered("a", 1),
        start(4),
    ];
    assert_eq!(one("a", &lines).1, 4, "two records, two starts between them");
    let many: Vec<String> = (0..100).map(start).collect();
    let lines = [vec![ruled("a", "web", 1)], many, vec![delivered("a", 1)]].concat();
    assert_eq!(one("a", &lines).1, 2 + STARTS);
}

#[test]
fn kept_records_are_bounded_and_the_last_stay() {
    let mut search = Search::new("a").unwrap();
    for at in 0..RECORDS as u64 + 5 {
        search.take(&ruled("a", "web", at));
    }
    let Found::One { records, left_out, .. } = search.found() else { panic!("one is found") };
    assert_eq!((records.len(), left_out), (RECORDS, 5));
    assert_eq!(records[0], ruled("a", "web", 5));
}

#[test]
fn line_of_others_is_not_read_and_broken_one_is_counted() {
    let mut search = Search::new("abc").unwrap();
    assert!(search.take("{nothing}"));
    assert!(!search.take("{\"abc\":}"));
    assert!(search.take("{\"record\":\"chain\",\"x\":\"abc\"}"));
    assert!(matches!(search.found(), Found::Nothing));
}
