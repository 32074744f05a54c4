//! Audit records in a person's words, for `tap` and `explain`. It reads JSON documents and misses nothing: what a newer router adds is passed over.

mod event;
mod ruling;

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub(crate) use event::{happened, limit, marks, signal_name, size};
pub(crate) use ruling::{decided, opinions, outcome, planned, recovered};

pub(crate) const BOLD: &str = "1";
pub(crate) const DIM: &str = "2";
pub(crate) const RED: &str = "31";
pub(crate) const GREEN: &str = "32";
pub(crate) const YELLOW: &str = "33";

/// Characters of a container id that tell it from others, as containerd's own tools cut it.
const SHORT: usize = 13;

/// Standard output, in colours on a terminal alone.
#[derive(Debug)]
pub(crate) struct Paper {
    colours: bool,
}

impl Paper {
    pub(crate) fn new() -> Self {
        Self { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Writes a line. An error is that nobody reads any more.
    pub(crate) fn say(&self, line: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")
    }

    pub(crate) fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Whether it tells what happened to a container, with the signal itself.
pub(crate) fn has_signal(record: &Value) -> bool {
    record["record"] == "ruled" || record["record"] == "resumed" && record["signal"].is_object()
}

/// A text of a record. What strangers chose must not drive a terminal: control characters are shown as such.
pub(crate) fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    Some(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

/// `namespace/pod/container`, as far as it is known; else the start of the id.
pub(crate) fn who(target: &Value) -> String {
    let owner = &target["owner"];
    let names = ["namespace", "pod", "container"].map(|key| text(&owner[key]));
    if names.iter().flatten().next().is_none() {
        return short(target["container-id"].as_str().unwrap_or("?"));
    }
    names.map(|name| name.unwrap_or_else(|| "?".to_owned())).join("/")
}

/// The start of a container id.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(SHORT).collect()
}

/// The container in a signal's id: `node:guest:stream:container:seq`.
pub(crate) fn container_of(id: &str) -> Option<&str> {
    id.rsplit(':').nth(1)
}

/// The time of day of unix milliseconds, in UTC.
pub(crate) fn clock(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).filter(|_| ms < YEAR_9999);
    let text = humantime::format_rfc3339_millis(time.unwrap_or(SystemTime::UNIX_EPOCH)).to_string();
    text.split_once('T').map_or(text.clone(), |(_, time)| time.to_owned())
}

/// The day of unix milliseconds, in UTC.
pub(crate) fn day(ms: u64) -> String {
    let text = humantime::format_rfc3339_seconds(
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(YEAR_9999 - 1)),
    );
    text.to_string().split('T').next().unwrap_or_default().to_owned()
}

/// RFC 3339 ends there, in milliseconds; a guest's clock may be anywhere.
const YEAR_9999: u64 = 253_402_300_800_000;

/// A time between two things, as short as it is still telling.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..100_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => humantime::format_duration(Duration::from_secs(ms / 1_000)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_called_by_its_names_and_else_by_the_start_of_its_id() {
        let owner = json!({ "namespace": "shop", "pod": "web-1", "container": "app" });
        assert_eq!(who(&json!({ "container-id": "ab", "owner": owner })), "shop/web-1/app");
        assert_eq!(
            who(&json!({ "container-id": "ab", "owner": { "pod": "web\u{1b}[2J" } })),
            "?/web\u{fffd}[2J/?"
        );
        assert_eq!(who(&json!({ "container-id": "0123456789abcdef", "owner": null })), "0123456789abc");
        assert_eq!(container_of("n:vm:stream:web-1:42"), Some("web-1"));
        assert_eq!(container_of("n:stream:web-1:42"), Some("web-1"), "version 2");
    }

    #[test]
    fn times_are_as_short_as_they_tell() {
        assert_eq!(
            [0, 999, 1_050, 99_999, 100_000].map(span),
            ["0 ms", "999 ms", "1.0 s", "99.9 s", "1m 40s"]
        );
        assert_eq!(clock(1_795_490_284_628), "03:18:04.628Z");
        assert_eq!((clock(u64::MAX), day(u64::MAX)), ("00:00:00.000Z".to_owned(), "9999-12-31".to_owned()));
    }
}
