//! A router's answer for a person. It reads the JSON document and misses nothing: what a newer router adds is passed over.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::View;
use super::table::table;

const RED: &str = "31";
const YELLOW: &str = "33";
const BOLD: &str = "1";

/// Digits of a digest that tell it from others.
const SHORT: usize = 12;

/// Writes answers to standard output.
pub(super) struct Show {
    colours: bool,
}

#[expect(clippy::print_stdout, reason = "the answer is what the command is for")]
fn say(line: &str) {
    println!("{line}");
}

impl Show {
    /// Colours on a terminal alone.
    pub(super) fn new() -> Self {
        Self { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// The document itself, or what `view` makes of it.
    pub(super) fn answer(&self, json: Option<String>, value: &Value, view: View) {
        match json {
            Some(json) => say(&json),
            None => view(self, value),
        }
    }

    pub(super) fn status(&self, value: &Value) {
        let up = Duration::from_millis(value["uptime-ms"].as_u64().unwrap_or(0));
        let up = humantime::format_duration(Duration::from_secs(up.as_secs()));
        let (version, node) = (text(&value["version"]), text(&value["node"]));
        say(&self.paint(BOLD, &format!("coroner {version} on {node}, up {up}, pid {}", value["pid"])));
        if value["shadow-all"] == true {
            say(&self.paint(YELLOW, "runs with --shadow-all: the native default rules"));
        }
        say("");
        self.list(value);
        say("");
        let sources = rows(&value["sources"], |it| {
            let state = if it["connected"] == true { "up".to_owned() } else { self.paint(RED, "down") };
            let (source, mode) = (text(&it["source"]), text(&it["mode"]));
            vec![source, mode, state, number(&it["signals"]), number(&it["lost"]), number(&it["refused"])]
        });
        self.table(&["SOURCE", "MODE", "LINK", "SIGNALS", "LOST", "REFUSED"], &sources);
        if value["guests"].as_array().is_some_and(|guests| !guests.is_empty()) {
            say("");
            self.guests(value);
        }
        say("");
        let sinks = rows(&value["sinks"], |it| {
            let (sink, kind) = (text(&it["sink"]), text(&it["type"]));
            vec![sink, kind, number(&it["delivered"]), number(&it["failed"]), reasons(&it["dropped"])]
        });
        self.table(&["SINK", "TYPE", "DELIVERED", "FAILED", "DROPPED"], &sinks);
    }

    pub(super) fn guest(&self, value: &Value) {
        let (name, address) = (text(&value["guest"]), text(&value["address"]));
        say(&format!("guest {name} is followed at {address}; `coroner guest list` shows when it is up"));
    }

    pub(super) fn removed_guest(&self, value: &Value) {
        let containers = number(&value["containers"]);
        say(&format!("guest {} is removed; containers told lost: {containers}", text(&value["guest"])));
    }

    pub(super) fn guests(&self, value: &Value) {
        let guests = rows(&value["guests"], |it| {
            let state = text(&it["state"]);
            let state = match state.as_str() {
                "up" => state,
                "lost" => self.paint(RED, &state),
                _ => self.paint(YELLOW, &state),
            };
            let (name, kind, mode) = (text(&it["guest"]), text(&it["type"]), text(&it["mode"]));
            let (refused, held) = (number(&it["refused"]), number(&it["held-back"]));
            let problem = it["problem"].as_str().unwrap_or("-").to_owned();
            vec![
                name,
                kind,
                mode,
                state,
                number(&it["containers"]),
                number(&it["signals"]),
                refused,
                held,
                problem,
            ]
        });
        self.table(
            &["GUEST", "TYPE", "MODE", "STATE", "CONTAINERS", "SIGNALS", "REFUSED", "HELD BACK", "PROBLEM"],
            &guests,
        );
    }

    pub(super) fn list(&self, value: &Value) {
        say(&format!("policies, generation {}", value["generation"]));
        if let Some(problem) = value["problem"].as_str() {
            say(&self.paint(RED, &format!("the last good chain runs: {problem}")));
        }
        let chain = rows(&value["chain"], |it| {
            let call = &it["call-us"]["p99"];
            let call = if call.is_null() { "-".to_owned() } else { format!("{call} us") };
            let (policy, version, mode) = (text(&it["policy"]), text(&it["version"]), text(&it["mode"]));
            vec![
                policy,
                version,
                short(&it["digest"]),
                mode,
                self.state(it),
                number(&it["calls"]),
                number(&it["decided"]),
                self.faults(&it["faults"]),
                call,
            ]
        });
        let headings =
            ["POLICY", "VERSION", "DIGEST", "MODE", "STATE", "CALLS", "DECIDED", "FAULTS", "P99 CALL"];
        self.table(&headings, &chain);
        for it in value["refused"].as_array().into_iter().flatten() {
            let kept = match it["kept"].as_str() {
                Some(_) => format!(" ({} runs on)", short(&it["kept"])),
                None => String::new(),
            };
            say(&self.paint(RED, &format!("refused: {}{kept}", text(&it["reason"]))));
        }
        for it in value["chain"].as_array().into_iter().flatten() {
            for (source, needs) in it["unmet-needs"].as_object().into_iter().flatten() {
                let (policy, needs) = (text(&it["policy"]), words(needs));
                let line = format!("{policy} needs {needs}, which source {source} cannot know in its mode");
                say(&self.paint(YELLOW, &line));
            }
        }
    }

    pub(super) fn inspect(&self, value: &Value) {
        let line = |name: &str, text: &str| say(&format!("{name:<14} {text}"));
        line("policy", &self.paint(BOLD, &text(&value["policy"])));
        line("version", &text(&value["version"]));
        line("digest", &text(&value["digest"]));
        line("mode", &text(&value["mode"]));
        line("state", &self.state(value));
        line("size", &format!("{} bytes", value["size"]));
        line("imports", &words(&value["imports"]));
        line("wants", &words(&value["wants"]));
        line("needs", &words(&value["needs"]));
        for (source, needs) in value["unmet-needs"].as_object().into_iter().flatten() {
            let text = format!("source {source} cannot know {}", words(needs));
            line("", &self.paint(YELLOW, &text));
        }
        let limits = value["limits"].as_object().into_iter().flatten();
        let limits: Vec<String> = limits.map(|(name, limit)| format!("{name} {}", text(limit))).collect();
        line("limits", &limits.join(", "));
        line("config", &value["config"].to_string());
        line("config schema", &text(&value["config-schema"]));
        line("calls", &format!("{}, {} decided", number(&value["calls"]), number(&value["decided"])));
        line("faults", &self.faults(&value["faults"]));
        for fault in value["last-faults"].as_array().into_iter().flatten() {
            let (kind, message) = (text(&fault["kind"]), text(&fault["message"]));
            let (container, ago) = (text(&fault["container"]), ago(&fault["at-ms"]));
            line("", &self.paint(RED, &format!("{ago}: {kind} on {container}: {message}")));
        }
        if !value["difference"].is_null() {
            self.difference(&value["difference"]);
        }
    }

    pub(super) fn reload(&self, value: &Value) {
        let what = if value["changed"] == true { "swapped" } else { "nothing to swap" };
        say(&format!("{what}, in {} ms", value["took-ms"]));
        self.list(value);
    }

    pub(super) fn promote(&self, value: &Value) {
        if !value["difference"].is_null() {
            self.difference(&value["difference"]);
        }
        match value["because"].as_str() {
            Some(because) => say(&self.paint(RED, &format!("not promoted: {because}"))),
            None => say("promoted: its rulings count from now on"),
        }
    }

    pub(super) fn release(&self, value: &Value) {
        let policy = text(&value["policy"]);
        if value["released"] == true {
            say(&format!("{policy} is called again"));
        } else {
            say(&format!("{policy} was not quarantined"));
        }
    }

    fn difference(&self, value: &Value) {
        let (signals, differs) = (number(&value["signals"]), number(&value["differs"]));
        say(&format!(
            "asked about {signals} signals it decided {}, failed {} times, and would have changed {differs}",
            number(&value["decided"]),
            number(&value["faults"])
        ));
        let rules = value["rules"].as_object().into_iter().flatten();
        let rules: Vec<Vec<String>> = rules
            .map(|(rule, it)| {
                let rule = if rule.is_empty() { "(no name)" } else { rule };
                vec![rule.to_owned(), number(&it["decided"]), number(&it["differs"])]
            })
            .collect();
        if !rules.is_empty() {
            self.table(&["RULE", "DECIDED", "WOULD CHANGE"], &rules);
        }
        for it in value["examples"].as_array().into_iter().flatten() {
            let who = it["pod"].as_str().unwrap_or_else(|| it["container"].as_str().unwrap_or("?"));
            let (enforced, would) = (&it["enforced"], &it["would"]);
            say(&format!("{who}: {enforced} would be {would}, because {}", text(&it["because"])));
        }
    }

    fn state(&self, policy: &Value) -> String {
        match policy["state"].as_str() {
            Some("quarantined") => {
                let until = Duration::from_millis(policy["until-ms"].as_u64().unwrap_or(0));
                let left = until.saturating_sub(now());
                let left = humantime::format_duration(Duration::from_secs(left.as_secs() + 1));
                self.paint(RED, &format!("quarantined for {left}"))
            }
            Some("trial") => self.paint(YELLOW, "trial"),
            other => other.unwrap_or("?").to_owned(),
        }
    }

    fn faults(&self, faults: &Value) -> String {
        let counts = faults.as_object().into_iter().flatten();
        let counts: Vec<String> = counts.map(|(kind, count)| format!("{count} {kind}")).collect();
        if counts.is_empty() { "none".to_owned() } else { self.paint(RED, &counts.join(", ")) }
    }

    fn table(&self, headings: &[&str], rows: &[Vec<String>]) {
        let lines = table(headings, rows);
        for (at, line) in lines.iter().enumerate() {
            say(&if at == 0 { self.paint(BOLD, line) } else { line.clone() });
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn rows(value: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    value.as_array().into_iter().flatten().map(row).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string())
}

/// `3 (full 2, refused 1)`
fn reasons(value: &Value) -> String {
    let told = value.as_object().into_iter().flatten();
    let told: Vec<_> =
        told.filter_map(|(reason, count)| Some((reason, count.as_u64().filter(|it| *it > 0)?))).collect();
    let sum: u64 = told.iter().map(|(_, count)| count).sum();
    let each: Vec<String> = told.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if each.is_empty() { "0".to_owned() } else { format!("{sum} ({})", each.join(", ")) }
}

fn words(value: &Value) -> String {
    let words: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn short(digest: &Value) -> String {
    let hex = digest.as_str().unwrap_or("?").trim_start_matches("sha256:");
    hex.chars().take(SHORT).collect()
}

fn ago(at_ms: &Value) -> String {
    let since = now().saturating_sub(Duration::from_millis(at_ms.as_u64().unwrap_or(0)));
    format!("{} ago", humantime::format_duration(Duration::from_secs(since.as_secs())))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
