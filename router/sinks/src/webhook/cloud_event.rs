//! A document as a CloudEvent 1.0 in the JSON event format (cloudevents/spec,
//! formats/json-format.md).

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Document;
use crate::route::AUDIT;

#[derive(Serialize)]
struct Attributes<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: String,
    datacontenttype: &'static str,
    topic: &'a str,
}

pub(super) fn of(document: &Document, source: &str) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(document.at_ms));
    let attributes = Attributes {
        specversion: "1.0",
        id: &document.id,
        source,
        r#type: match document.topic.as_str() {
            AUDIT => "coroner.audit",
            "/tasks/oom" => "coroner.task-oom",
            "/tasks/exit" => "coroner.task-exit",
            _ => "coroner.report",
        },
        subject: document.subject.as_deref(),
        time: rfc3339(time),
        datacontenttype: "application/json",
        topic: &document.topic,
    };
    document.within(&attributes, "data")
}

/// A clock beyond the year 9999 has no such format: the end of that year stands for it.
fn rfc3339(time: Option<SystemTime>) -> String {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let last = SystemTime::UNIX_EPOCH + LAST;
    humantime::format_rfc3339_millis(time.unwrap_or(last).min(last)).to_string()
}
