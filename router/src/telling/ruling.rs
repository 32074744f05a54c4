//! What was ruled, by whom and because, and what became of it, in words.

use serde_json::Value;

use super::{span, text};

/// What counts in the end, in one line: by whom and because.
pub(crate) fn decided(record: &Value) -> String {
    let done = actions(&record["actions"]);
    if let Some(why) = text(&record["illegal"]) {
        return format!("native default: {done}, because what was ruled is not legal: {why}");
    }
    let opinions = record["rulings"].as_array().map_or(&[][..], Vec::as_slice);
    // The last that decided: it replaced the draft of those before it.
    let last = opinions.iter().rev().find(|it| it["ruling"]["decide"].is_object());
    match last {
        Some(it) => {
            let because = text(&it["ruling"]["decide"]["because"]).unwrap_or_default();
            format!("{}: {done}, because {because}", text(&it["policy"]).unwrap_or_default())
        }
        None => format!("native default: {done}"),
    }
}

/// Each policy's part in a ruling, and whether it failed.
pub(crate) fn opinions(record: &Value) -> Vec<(String, bool)> {
    let opinions = record["rulings"].as_array().into_iter().flatten();
    let mut lines: Vec<_> = opinions.map(|it| (opinion(it), it["fault"].is_object())).collect();
    if let Some(why) = text(&record["illegal"]) {
        let done = actions(&record["actions"]);
        lines.push((format!("not legal, so the native default stands: {done}; {why}"), true));
    }
    let shadow = &record["shadow"];
    if shadow["differs"] == true {
        lines.push((format!("in mode shadow it would have been: {}", actions(&shadow["actions"])), false));
    }
    lines
}

fn opinion(it: &Value) -> String {
    let by =
        format!("{} {}", text(&it["policy"]).unwrap_or_default(), text(&it["version"]).unwrap_or_default());
    let decision = &it["ruling"]["decide"];
    if it["fault"].is_object() {
        let fault = &it["fault"];
        let (kind, message) = (text(&fault["kind"]), text(&fault["message"]));
        return format!("{by} failed ({}): {}", kind.unwrap_or_default(), message.unwrap_or_default());
    }
    if !decision.is_object() {
        return format!("{by}: pass");
    }
    let because = text(&decision["because"]).unwrap_or_default();
    format!("{by}: {}, because {because}", actions(&decision["actions"]))
}

/// Where the actions of a ruling go, each in a few words.
pub(crate) fn planned(record: &Value) -> Vec<String> {
    let plans = record["delivery"].as_array().into_iter().flatten();
    let planned = plans.map(|it| {
        let topic = text(&it["topic"]).unwrap_or_default();
        match (it["state"].as_str(), text(&it["sink"])) {
            (Some("queued"), Some(sink)) => format!("{topic} queued for {sink}"),
            _ => format!("{topic} withheld: {}", text(&it["because"]).unwrap_or_default()),
        }
    });
    planned.collect()
}

/// What became of a delivery, and whether the sink has it.
pub(crate) fn outcome(record: &Value) -> (String, bool) {
    let (sink, topic) =
        (text(&record["sink"]).unwrap_or_default(), text(&record["topic"]).unwrap_or_default());
    let tries = record["attempts"].as_u64().unwrap_or(0);
    let tries = format!("{tries} {}", if tries == 1 { "try" } else { "tries" });
    let waited = span(record["waited-ms"].as_u64().unwrap_or(0));
    let error = text(&record["error"]).map(|error| format!("; last error: {error}")).unwrap_or_default();
    match record["outcome"].as_str() {
        Some("acked") => (format!("{sink} took {topic}: {tries}, {waited}{error}"), true),
        Some("repeated") => (format!("{sink} was sent {topic} once more, after it came back: {tries}"), true),
        Some("unsent") => (
            format!("{topic} is not at {sink} yet, the router stopped first: {tries}, {waited}{error}"),
            false,
        ),
        Some("dropped") => (format!("{topic} was given up for {sink}: {tries}, {waited}{error}"), false),
        other => (format!("{sink}, {topic}: {}", other.unwrap_or("?")), false),
    }
}

/// What a router found in its journal when it began.
pub(crate) fn recovered(record: &Value) -> String {
    let number = |key: &str| record[key].as_u64().unwrap_or(0);
    let damaged = match number("damaged") {
        0 => String::new(),
        damaged => format!("; {damaged} damaged lines left out"),
    };
    let (signals, events) = (number("signals"), number("events"));
    format!("the router began again, with {signals} signals to rule and {events} events to deliver{damaged}")
}

/// Actions in order.
pub(crate) fn actions(actions: &Value) -> String {
    let one = |action: &Value| {
        if let Some(name) = action.as_str() {
            return name.to_owned();
        }
        match action["task-exit"].as_u64() {
            Some(status) => format!("task-exit with status {status}"),
            None if action["report"].is_object() => {
                let (topic, message) = (text(&action["report"]["topic"]), text(&action["report"]["message"]));
                format!("report on {} ({})", topic.unwrap_or_default(), message.unwrap_or_default())
            }
            None => action.as_object().and_then(|it| it.keys().next()).cloned().unwrap_or_default(),
        }
    };
    let names: Vec<String> = actions.as_array().into_iter().flatten().map(one).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", then ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decide(policy: &str, actions: &Value, because: &str) -> Value {
        json!({ "policy": policy, "version": "1", "ruling": { "decide": { "actions": actions, "because": because } }, "fault": null })
    }

    #[test]
    fn the_last_policy_that_decided_is_the_one_that_ruled() {
        let rulings = json!([decide("00-a", &json!(["task-oom"]), "x"), decide("50-b", &json!([]), "y"), { "policy": "60-c", "version": "1", "ruling": "pass", "fault": null }]);
        let record = json!({ "rulings": rulings, "actions": [], "illegal": null });
        assert_eq!(decided(&record), "50-b: nothing, because y");
        let lines: Vec<String> = opinions(&record).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, ["00-a 1: task-oom, because x", "50-b 1: nothing, because y", "60-c 1: pass"]);
        let illegal =
            json!({ "rulings": rulings, "actions": [{ "task-exit": null }], "illegal": "0 task-exit" });
        assert_eq!(
            decided(&illegal),
            "native default: task-exit, because what was ruled is not legal: 0 task-exit"
        );
        let fault = json!({ "policy": "70-d", "version": "1", "ruling": null, "fault": { "kind": "trap", "message": "boom" } });
        let record = json!({ "rulings": [fault], "actions": ["task-oom"], "illegal": null });
        assert_eq!(decided(&record), "native default: task-oom");
        assert_eq!(opinions(&record), [("70-d 1 failed (trap): boom".to_owned(), true)]);
    }

    #[test]
    fn a_start_says_what_the_router_goes_on_with() {
        let record = json!({ "signals": 3, "events": 2, "containers": 9, "damaged": 0 });
        let said = "the router began again, with 3 signals to rule and 2 events to deliver";
        assert_eq!(recovered(&record), said);
        let record = json!({ "signals": 3, "events": 2, "damaged": 1 });
        assert_eq!(recovered(&record), format!("{said}; 1 damaged lines left out"));
    }

    #[test]
    fn actions_are_told_in_order() {
        let report = json!({ "report": { "topic": "pager", "message": "m" } });
        assert_eq!(
            actions(&json!(["task-oom", { "task-exit": 3 }, report])),
            "task-oom, then task-exit with status 3, then report on pager (m)"
        );
        assert_eq!(actions(&json!([{ "task-exit": null }])), "task-exit");
    }
}
