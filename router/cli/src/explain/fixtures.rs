//! The records of three deaths, made by hand: at the container's own limit, at its pod's, and by
//! the runtime's stop.

use super::reading::ReadRecords;

pub(super) static OWN_LIMIT: &str = include_str!("fixtures/own-limit.jsonl");
pub(super) static POD_LIMIT: &str = include_str!("fixtures/pod-limit.jsonl");
pub(super) static STOPPED: &str = include_str!("fixtures/stopped.jsonl");

pub(super) fn reading(lines: &str) -> ReadRecords {
    let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    let reading = ReadRecords::of("c", &lines, 0, Vec::new());
    assert!(reading.unread.is_empty(), "{:?}", reading.unread);
    reading
}
