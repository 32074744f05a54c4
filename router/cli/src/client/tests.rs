//! Every answer as it is shown, on fixed documents.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Renderer, policies, status, tap};
use crate::render::Screen;

/// An answer of the admin server for each view, by its name.
static ANSWERS: &str = include_str!("answers.json");

fn shown<T: DeserializeOwned>(name: &str, view: Renderer<T>) -> String {
    let answers: Value = serde_json::from_str(ANSWERS).unwrap();
    let mut screen = Screen::plain();
    // 19.5 s before the end of the quarantine.
    screen.now = std::time::Duration::from_millis(1_795_490_300_000);
    view(&serde_json::from_value(answers[name].clone()).unwrap(), &mut screen);
    screen.text().to_owned()
}

#[test]
fn status_is_shown_with_problems_and_queues() {
    insta::assert_snapshot!(shown("status", status::status));
}

#[test]
fn policies_are_shown_with_faults_and_refusals() {
    insta::assert_snapshot!("list", shown("list", policies::list));
    insta::assert_snapshot!("inspect", shown("inspect", policies::inspect));
    insta::assert_snapshot!("reload", shown("reload", policies::reload));
    insta::assert_snapshot!("promoted", shown("promoted", policies::promote));
    insta::assert_snapshot!("not_promoted", shown("not-promoted", policies::promote));
    insta::assert_snapshot!("released", shown("released", policies::release));
}

#[test]
fn guests_are_shown_by_name() {
    insta::assert_snapshot!("guests", shown("guests", status::guest_list));
    insta::assert_snapshot!("guest_added", shown("guest", status::added));
    insta::assert_snapshot!("guest_removed", shown("guest", status::removed));
}

#[test]
fn escapes_in_names_and_faults_are_replaced() {
    let mut answers: Value = serde_json::from_str(ANSWERS).unwrap();
    let name = "70-\u{1b}[31mtrap\n00-kubernetes\u{202e}";
    let inspection = &mut answers["inspect"];
    inspection["policy"] = name.into();
    inspection["last-faults"][0]["message"] = name.into();
    let listing = &mut answers["list"];
    listing["chain"][1]["policy"] = name.into();
    listing["refused"][0]["reason"] = name.into();
    let mut screen = Screen::plain();
    policies::inspect(&serde_json::from_value(answers["inspect"].clone()).unwrap(), &mut screen);
    policies::list(&serde_json::from_value(answers["list"].clone()).unwrap(), &mut screen);
    let text = screen.text();
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    let replaced = "70-\u{fffd}[31mtrap\u{fffd}00-kubernetes\u{fffd}";
    // Twice in `inspect`; in `list` once in the table, as refused and with unmet needs.
    assert_eq!(text.matches(replaced).count(), 5, "{text}");
}

#[test]
fn newer_answer_is_read_and_its_added_keys_skipped() {
    let mut answers: Value = serde_json::from_str(ANSWERS).unwrap();
    answers["status"]["of-tomorrow"] = true.into();
    answers["status"]["chain"][0]["of-tomorrow"] = true.into();
    let status: Result<coroner::node::admin::Status, _> = serde_json::from_value(answers["status"].clone());
    assert!(status.is_ok(), "{status:?}");
}

#[test]
fn tap_shows_rulings_and_deliveries() {
    let mut view = tap::TapView::new(false, Screen::plain());
    for record in include_str!("../demo/recording.jsonl").lines() {
        view.show(record);
    }
    for record in [
        r#"{"v":4,"record":"recovered","at-ms":1795490284700,"signals":2,"events":1,"containers":9,"damaged":1}"#,
        r#"{"v":4,"record":"chain","at-ms":1795490284800,"generation":2,"policies":[],"refused":[{"subject":"60-x","reason":"r","kept":null}]}"#,
        r#"{"v":4,"record":"delivered","id":"n::s:0123456789abcdef:7","sink":"pager","topic":"audit","outcome":"dropped","attempts":3,"waited-ms":61000,"error":"503"}"#,
        r#"{"v":9,"record":"of-tomorrow","at-ms":1795490284900}"#,
    ] {
        view.show(record);
    }
    insta::assert_snapshot!(view.screen.text());
}
