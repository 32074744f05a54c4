//! The page of each death: its text, what it may not have, and names that are markup.

use super::*;
use crate::explain::fixtures::{OWN_LIMIT, POD_LIMIT, STOPPED, reading};

/// The page without its style.
fn page(lines: &str) -> String {
    of(&reading(lines)).replace(STYLE, "")
}

#[test]
fn page_of_a_kill_is_fixed() {
    insta::assert_snapshot!(page(OWN_LIMIT).replace("><", ">\n<"));
}

#[test]
fn page_needs_nothing_from_outside_and_no_script() {
    for lines in [OWN_LIMIT, POD_LIMIT, STOPPED] {
        let page = of(&reading(lines));
        for wrong in ["http", "src=", "@import", "url(", "<script", "<link", "javascript"] {
            assert!(!page.contains(wrong), "{wrong}");
        }
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    }
}

#[test]
fn names_of_containers_and_processes_are_text() {
    let hostile = "</style><img src=x onerror=alert(1)>\\u202e\\u001b[2J\\u0000\\\"'&";
    let mut lines = OWN_LIMIT.replace("\"comm\":\"node\"", &format!("\"comm\":\"{hostile}\""));
    for name in ["web-7f9c", "registry.local/shop/web:2.14", "worker-1\"", "80-kill-attribution"] {
        let with = if name.ends_with('"') { format!("{hostile}\"") } else { hostile.to_owned() };
        lines = lines.replace(name, &with);
    }
    let page = page(&lines);
    assert!(!page.contains("<img") && !page.contains("alert(1)>"), "{page}");
    assert!(page.contains(
        "&lt;/style&gt;&lt;img src=x onerror=alert(1)&gt;\u{fffd}\u{fffd}[2J\u{fffd}&quot;&#39;&amp;"
    ));
    assert!(page.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'));
    assert_eq!(page.matches("</style>").count(), 1);
}

#[test]
fn part_without_facts_states_that() {
    let parts = |page: &str| page.matches("<section>").count();
    let page = page(include_str!("../../demo/recording.jsonl"));
    assert_eq!((parts(&page), page.matches("class=\"unknown\"").count()), (7, 4), "{page}");
    let empty = of(&reading("")).replace(STYLE, "");
    assert_eq!((parts(&empty), empty.matches("class=\"unknown\"").count()), (7, 6), "{empty}");
    assert!(empty.contains("it runs") && empty.contains("no record has its end"), "{empty}");
}

#[test]
fn picture_without_some_facts_is_drawn_without_them() {
    // A counter of stall that began anew, no limit, and one sample before the others.
    let mut lines: Vec<serde_json::Value> =
        OWN_LIMIT.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let evidence = lines.iter_mut().find_map(|it| it.pointer_mut("/signal/event/evidence")).unwrap();
    evidence["limits"] = serde_json::json!([]);
    for sample in evidence["samples"].as_array_mut().unwrap() {
        sample["limit-bytes"] = serde_json::Value::Null;
        sample["some-us"] = serde_json::json!(5);
        sample["full-us"] = serde_json::Value::Null;
    }
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    let without = page(&lines.join("\n"));
    assert!(without.contains("polyline class=\"usage\"") && !without.contains("class=\"limit\""));
    assert!(!without.contains("NaN") && !without.contains("inf"), "{without}");
}
