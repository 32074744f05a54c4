//! One container's records as a timeline, with who it is and what became of it above.

use std::collections::HashMap;
use std::io;

use serde_json::Value;

use super::verdict::verdict;
use crate::telling::{self, BOLD, DIM, GREEN, Paper, RED, YELLOW, clock, day, span, text};

/// Other containers of the same name that are listed.
const LISTED: usize = 5;
/// Columns of the time, and of the time since the line before.
const MARGIN: usize = 26;

/// What is printed.
#[derive(Debug)]
pub(super) struct Story {
    head: Vec<(&'static str, String)>,
    lines: Vec<Line>,
}

/// One line of the timeline.
#[derive(Debug)]
struct Line {
    /// Unix milliseconds; `None`: it belongs to the line before.
    at: Option<u64>,
    text: String,
    colour: Option<&'static str>,
}

impl Line {
    fn at(at: u64, colour: Option<&'static str>, text: String) -> Self {
        Self { at: Some(at), text, colour }
    }

    fn under(colour: Option<&'static str>, text: String) -> Self {
        Self { at: None, text, colour }
    }
}

impl Story {
    /// Of a container's records, in the order they were written.
    pub(super) fn of(container: &str, records: &[String], left_out: usize, others: &[String]) -> Self {
        let records: Vec<Value> = records.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut head = head(container, &records);
        if left_out > 0 {
            head.push(("left out", format!("{left_out} earlier records")));
        }
        if !others.is_empty() {
            let named: Vec<String> = others.iter().rev().take(LISTED).map(|id| telling::short(id)).collect();
            head.push((
                "others",
                format!("{} before it of the same name: {}", others.len(), named.join(", ")),
            ));
        }
        head.push(("verdict", verdict(&records)));
        Self { head, lines: Timeline::default().of(&records) }
    }

    pub(super) fn print(&self, paper: &Paper) -> io::Result<()> {
        for (name, value) in &self.head {
            let value = if *name == "verdict" { paper.paint(BOLD, value) } else { value.clone() };
            paper.say(format!("{name:<10} {value}").trim_end())?;
        }
        let mut before: Option<u64> = None;
        let mut today = String::new();
        for line in &self.lines {
            let mut margin = String::new();
            if let Some(at) = line.at {
                if day(at) != today {
                    today = day(at);
                    paper.say("")?;
                    paper.say(&paper.paint(DIM, &today))?;
                }
                // Two clocks may see two things in another order than they were told in.
                let since = before.map(|before| format!("+{}", span(at.saturating_sub(before))));
                margin = format!("{} {:>12}", clock(at), since.unwrap_or_default());
                before = Some(at);
            }
            let text =
                line.colour.map_or_else(|| line.text.clone(), |colour| paper.paint(colour, &line.text));
            let indent = if line.at.is_some() { "" } else { "  " };
            paper.say(&format!("{}  {indent}{text}", paper.paint(DIM, &format!("{margin:<MARGIN$}"))))?;
        }
        Ok(())
    }
}

fn head(container: &str, records: &[Value]) -> Vec<(&'static str, String)> {
    let rulings = || records.iter().rev().filter(|it| telling::has_signal(it));
    let target = rulings().map(|it| &it["signal"]["target"]).find(|it| it["owner"].is_object());
    let target =
        target.or_else(|| rulings().map(|it| &it["signal"]["target"]).next()).unwrap_or(&Value::Null);
    let owner = &target["owner"];
    let mut head = vec![("container", container.to_owned())];
    if text(&owner["pod"]).is_some() || text(&owner["container"]).is_some() {
        let init = if owner["init-container"] == true { ", an init container" } else { "" };
        head.push(("pod", format!("{}{init}", telling::who(target))));
    }
    if let Some(image) = text(&owner["image"]) {
        head.push(("image", image));
    }
    let limit = rulings().find_map(|it| {
        let of_kill = it["signal"]["event"]["oom-kill"]["limit-bytes"].as_u64();
        of_kill
            .filter(|_| it["signal"]["event"]["oom-kill"]["level"] == "container")
            .or(it["case"]["memory-limit"].as_u64())
    });
    head.push((
        "memory",
        limit.map_or_else(|| "limit not known".to_owned(), |it| format!("limit {}", telling::size(it))),
    ));
    if let Some(node) = text(&target["node"]) {
        let guest = text(&target["guest"]).map(|guest| format!(", guest {guest}")).unwrap_or_default();
        let source = rulings()
            .find_map(|it| Some(format!("; source {}, mode {}", text(&it["source"])?, text(&it["mode"])?)));
        head.push(("node", format!("{node}{guest}{}", source.unwrap_or_default())));
    }
    head
}

/// What was seen so far, by signal id.
#[derive(Default)]
struct Timeline {
    lines: Vec<Line>,
    /// When it was told first, and what was to be done then.
    ruled: HashMap<String, (u64, Value)>,
    /// What has been taken, by id, sink and topic.
    taken: HashMap<(String, String, String), u32>,
}

impl Timeline {
    fn of(mut self, records: &[Value]) -> Vec<Line> {
        for record in records {
            match record["record"].as_str() {
                Some("ruled") => self.ruled(record),
                Some("delivered") => self.delivered(record),
                Some("resumed") => self.resumed(record),
                Some("journaled") => self.journaled(record),
                Some("recovered") => {
                    let at = record["at-ms"].as_u64().unwrap_or(0);
                    self.lines.push(Line::at(at, Some(YELLOW), telling::recovered(record)));
                }
                _ => {}
            }
        }
        self.lines
    }

    fn ruled(&mut self, record: &Value) {
        let signal = &record["signal"];
        let id = signal["id"].as_str().unwrap_or_default().to_owned();
        let at = signal["at"]["received-ms"].as_u64().unwrap_or(0);
        let again = self.ruled.insert(id, (at, record["actions"].clone()));
        let mut marks: Vec<String> = telling::marks(signal).into_iter().map(str::to_owned).collect();
        if again.is_some() {
            marks.push("told again, under the same id".to_owned());
        }
        if let Some(since) = signal["at"]["wall-ms"].as_u64().map(|wall| at.saturating_sub(wall))
            && (TOLD_LATE..WRONG_CLOCK).contains(&since)
        {
            marks.push(format!("by its own clock {} before", span(since)));
        }
        let marks: String = marks.iter().map(|mark| format!(" [{mark}]")).collect();
        let colour = if marks.is_empty() { BOLD } else { YELLOW };
        self.lines.push(Line::at(at, Some(colour), format!("{}{marks}", telling::happened(signal))));
        for pair in signal["attributes"].as_array().into_iter().flatten() {
            if let (Some(key), Some(value)) = (text(&pair[0]), text(&pair[1])) {
                self.lines.push(Line::under(Some(DIM), format!("{key}: {value}")));
            }
        }
        if again.is_some_and(|(_, actions)| actions == record["actions"]) {
            self.lines.push(Line::under(None, format!("ruled as before: {}", telling::decided(record))));
            return;
        }
        let opinions = telling::opinions(record);
        if opinions.is_empty() {
            self.lines.push(Line::under(None, telling::decided(record)));
        }
        for (opinion, failed) in opinions {
            self.lines.push(Line::under(failed.then_some(RED), opinion));
        }
        for planned in telling::planned(record) {
            self.lines.push(Line::under(Some(DIM), planned));
        }
    }

    /// It was ruled before the router died, and is delivered now: its ruling may never have come to the file.
    fn resumed(&mut self, record: &Value) {
        let id = record["id"].as_str().unwrap_or_default().to_owned();
        let (at, signal) = (record["at-ms"].as_u64().unwrap_or(0), &record["signal"]);
        if !self.ruled.contains_key(&id) && signal.is_object() {
            let received = signal["at"]["received-ms"].as_u64().unwrap_or(0);
            let happened = format!("{} [ruled before the router died]", telling::happened(signal));
            self.lines.push(Line::at(received, Some(YELLOW), happened));
        }
        let topics = record["topics"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let topics: Vec<&str> = topics.collect();
        self.lines.push(Line::at(at, Some(YELLOW), format!("goes on to deliver {}", topics.join(", "))));
        // What it leads to is counted from here.
        self.ruled.entry(id).or_insert((at, Value::Null)).0 = at;
    }

    /// What the audit tells too is told once.
    fn journaled(&mut self, record: &Value) {
        let known = self.ruled.contains_key(record["id"].as_str().unwrap_or_default());
        let so = match record["state"].as_str() {
            Some("accepted") => "not ruled yet",
            Some("ruled") => "ruled, and not delivered yet",
            _ if known => return,
            _ => "dealt with",
        };
        let signal = &record["signal"];
        if known || signal.is_null() {
            self.lines.push(Line::under(Some(YELLOW), format!("in the journal: {so}")));
            return;
        }
        let at = signal["at"]["received-ms"].as_u64().unwrap_or(0);
        let happened = telling::happened(signal);
        self.lines.push(Line::at(at, Some(YELLOW), format!("{happened} [in the journal: {so}]")));
    }

    fn delivered(&mut self, record: &Value) {
        let key = ["id", "sink", "topic"].map(|key| record[key].as_str().unwrap_or_default().to_owned());
        let ruled = self.ruled.get(&key[0]).map(|(at, _)| *at);
        let [id, sink, topic] = key;
        let (mut outcome, taken) = telling::outcome(record);
        if taken {
            let times = self.taken.entry((id, sink, topic)).or_default();
            *times += 1;
            if *times > 1 && record["outcome"] != "repeated" {
                outcome = format!("{outcome} [again, the same event id]");
            }
        }
        let colour = Some(if taken { GREEN } else { RED });
        // A delivery is told with how long it waited since its ruling, not with a time of its own.
        self.lines.push(match ruled {
            Some(at) => {
                Line::at(at.saturating_add(record["waited-ms"].as_u64().unwrap_or(0)), colour, outcome)
            }
            None => Line::under(colour, outcome),
        });
    }
}

/// A signal that was told so long after it happened waited for somebody: that is worth a mark.
const TOLD_LATE: u64 = 500;
/// A clock that is a day behind is wrong, and the news is not late.
const WRONG_CLOCK: u64 = 24 * 60 * 60 * 1_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static RECORDING: &str = include_str!("../demo/recording.jsonl");

    fn texts(records: &[Value]) -> Vec<String> {
        let lines = Timeline::default().of(records);
        lines
            .into_iter()
            .map(|it| format!("{}{}", if it.at.is_some() { "* " } else { "" }, it.text))
            .collect()
    }

    fn recording() -> Vec<Value> {
        RECORDING.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_recording_is_told_in_order() {
        assert_eq!(
            texts(&recording()),
            [
                "* OOM kill, counter +1 to 1, of a child exe (pid 22584), at its limit of 32 MiB",
                "00-kubernetes 0.1.0: task-oom, because the kernel's OOM kill counter rose by 1",
                "/tasks/oom queued for containerd",
                "* containerd took /tasks/oom: 1 try, 0 ms",
                "* exited with status 1",
                "00-kubernetes 0.1.0: task-exit, because the container ended: its real status",
                "/tasks/exit queued for containerd",
                "* containerd took /tasks/exit: 1 try, 0 ms",
            ]
        );
        let lines: Vec<String> = RECORDING.lines().map(str::to_owned).collect();
        let story = Story::of("c", &lines, 3, &["a".to_owned(), "b".to_owned()]);
        let head: Vec<String> = story.head.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            head,
            [
                "container: c",
                "memory: limit 32 MiB",
                "node: demo; source demo, mode sole",
                "left out: 3 earlier records",
                "others: 2 before it of the same name: b, a",
                "verdict: exited 1, 4 ms after an OOM kill of a child (exe) at its limit of 32 MiB; containerd knows of the kill",
            ]
        );
    }

    #[test]
    fn what_only_the_journal_knows_is_told_and_what_the_audit_has_is_not_told_again() {
        let mut records = recording();
        let known = records.iter().find(|it| it["record"] == "ruled").unwrap()["signal"].clone();
        let mut other = known.clone();
        other["id"] = "n::s:c:99".into();
        let journaled = |signal: &Value, state: &str| json!({ "record": "journaled", "state": state, "id": signal["id"], "container": "c", "signal": signal });
        records.push(journaled(&known, "done"));
        let before = texts(&records).len();
        records.push(journaled(&other, "accepted"));
        records.push(journaled(&known, "ruled"));
        let texts = texts(&records);
        assert_eq!(texts.len(), before + 2, "{texts:#?}");
        assert!(texts[before].ends_with("[in the journal: not ruled yet]"), "{texts:#?}");
        assert_eq!(texts[before + 1], "in the journal: ruled, and not delivered yet");
    }

    #[test]
    fn what_was_ruled_before_the_router_died_is_told_though_its_line_was_lost() {
        let all = recording();
        let resumed = |signal: &Value, topic: &str| json!({ "v": 3, "record": "resumed", "at-ms": 1_700_000_000_000_u64, "id": signal["id"], "container": "c", "source": "demo", "signal": signal, "topics": [topic] });
        let (kill, exit) = (&all[0]["signal"], &all[2]["signal"]);
        let records = [
            resumed(kill, "/tasks/oom"),
            all[1].clone(),
            all[2].clone(),
            resumed(exit, "/tasks/exit"),
            all[3].clone(),
        ];
        let texts = texts(&records);
        assert_eq!(
            texts[..3],
            [
                "* OOM kill, counter +1 to 1, of a child exe (pid 22584), at its limit of 32 MiB [ruled before the router died]",
                "* goes on to deliver /tasks/oom",
                "* containerd took /tasks/oom: 1 try, 0 ms",
            ],
            "{texts:#?}"
        );
        assert_eq!(
            texts.iter().filter(|text| text.contains("exited with status 1")).count(),
            1,
            "{texts:#?}"
        );
        assert!(
            verdict(&records).contains("exited 1, 4 ms after an OOM kill of a child"),
            "{}",
            verdict(&records)
        );
        let damaged = json!({ "record": "resumed", "at-ms": 1, "id": "n::s:c:9", "signal": null, "topics": ["/tasks/oom"] });
        assert_eq!(super::tests::texts(&[damaged]), ["* goes on to deliver /tasks/oom"]);
    }

    #[test]
    fn repeats_late_news_and_what_was_not_sent_are_told_as_such() {
        let mut records = recording();
        records[2]["signal"]["at"]["wall-ms"] = json!(7);
        records[1]["outcome"] = json!("unsent");
        records[1]["error"] = json!("connection refused");
        let mut again = records[0].clone();
        again["signal"]["at"]["received-ms"] =
            json!(again["signal"]["at"]["received-ms"].as_u64().unwrap() + 10_000);
        let mut acked = recording()[1].clone();
        acked["attempts"] = json!(3);
        let mut repeated = acked.clone();
        repeated["outcome"] = json!("repeated");
        let mut exit = records[2].clone();
        exit["signal"]["event"]["exited"]["reconciled"] = json!(true);
        let lines =
            texts(&[records[0].clone(), records[1].clone(), again, acked.clone(), acked, repeated, exit]);
        for due in [
            "* /tasks/oom is not at containerd yet, the router stopped first: 1 try, 0 ms; last error: connection refused",
            "* OOM kill, counter +1 to 1, of a child exe (pid 22584), at its limit of 32 MiB [told again, under the same id] [by its own clock 10.0 s before]",
            "ruled as before: 00-kubernetes: task-oom, because the kernel's OOM kill counter rose by 1",
            "* containerd took /tasks/oom: 3 tries, 0 ms",
            "* containerd took /tasks/oom: 3 tries, 0 ms [again, the same event id]",
            "* containerd was sent /tasks/oom once more, after it came back: 3 tries",
            "* exited with status 1 [reconciled]",
        ] {
            assert!(lines.iter().any(|line| line == due), "{due}\nis not in {lines:#?}");
        }
    }
}
