//! One container's records as a timeline, below its name and its verdict.

use std::collections::HashMap;
use std::time::Duration;

use coroner_core::audit::{Delivered, DeliveredOutcome, Resumed, Ruled};
use coroner_core::ruling::Action;

use super::kill_lines;
use super::reading::ReadRecords;
use super::sentence::sentence;
use crate::render::Colour::{self, Bold, Dim, Green, Red, Yellow};
use crate::render::record::{JournalState, Journaled, RecordLine};
use crate::render::{self, Screen, clock, day, paint, short_id, span};

/// Other containers of the same name that are listed.
const LISTED: usize = 5;
/// Columns of a name above the timeline.
const NAME: usize = 10;
/// Columns of the time, and of the time since the line before.
const MARGIN: usize = 26;

/// The text that is printed.
#[derive(Debug)]
pub(super) struct Story {
    head: Vec<(&'static str, String)>,
    lines: Vec<StoryLine>,
}

/// One line of the timeline.
#[derive(Debug)]
struct StoryLine {
    /// Unix milliseconds; `None`: it belongs to the line before.
    at: Option<u64>,
    text: String,
    colour: Option<Colour>,
}

impl Story {
    pub(super) fn of(reading: &ReadRecords) -> Self {
        let mut head = head(reading);
        head.extend(kill_lines::lines(&reading.verdict));
        if reading.left_out > 0 {
            head.push(("left out", format!("{} earlier records", reading.left_out)));
        }
        let others = &reading.others;
        if !others.is_empty() {
            let listed: Vec<String> = others.iter().rev().take(LISTED).map(|id| short_id(id)).collect();
            let others = format!("{} before it of the same name: {}", others.len(), listed.join(", "));
            head.push(("others", others));
        }
        head.push(("verdict", sentence(&reading.verdict)));
        Self { head, lines: Timeline::default().of(&reading.entries) }
    }

    pub(super) fn print(&self, screen: &mut Screen) {
        for (name, value) in &self.head {
            screen.field(NAME, name, paint((*name == "verdict").then_some(Bold), value));
        }
        let mut before: Option<u64> = None;
        let mut today = String::new();
        for line in &self.lines {
            let mut margin = String::new();
            if let Some(at) = line.at {
                if day(at) != today {
                    today = day(at);
                    screen.line("");
                    screen.line(paint(Dim, &today));
                }
                let since = before.map(|before| Duration::from_millis(at.saturating_sub(before)));
                let since = since.map(|since| format!("+{}", span(since))).unwrap_or_default();
                margin = format!("{} {since:>12}", clock(at));
                before = Some(at);
            }
            let indent = if line.at.is_some() { "  " } else { "    " };
            let text = paint(line.colour, &line.text);
            screen.line(paint(Dim, format!("{margin:<MARGIN$}")).then(indent).then(text));
        }
    }
}

fn head(reading: &ReadRecords) -> Vec<(&'static str, String)> {
    let mut head = vec![("container", reading.container.clone())];
    let target = reading.target();
    if let Some((target, owner)) = target.and_then(|it| Some((it, it.owner.as_ref()?))) {
        if owner.pod.is_some() || owner.container.is_some() {
            let init = if owner.init_container == Some(true) { ", an init container" } else { "" };
            head.push(("pod", format!("{}{init}", render::container_name(target))));
        }
        head.extend(owner.image.clone().map(|image| ("image", image)));
    }
    let limit = reading.own_limit();
    let limit =
        limit.map_or_else(|| "limit not known".to_owned(), |it| format!("limit {}", render::size(it)));
    head.push(("memory", limit));
    if let Some(target) = target {
        let guest = target.guest.as_ref().map(|guest| format!(", guest {guest}")).unwrap_or_default();
        let source =
            reading.last_ruled().map(|it| format!("; source {}, mode {}", it.source, it.mode.name()));
        head.push(("node", format!("{}{guest}{}", target.node, source.unwrap_or_default())));
    }
    head
}

/// The lines, and what the records so far contained.
#[derive(Default)]
struct Timeline<'a> {
    lines: Vec<StoryLine>,
    /// When a signal was received, or its delivery resumed, and its actions; by its id.
    ruled: HashMap<&'a str, (u64, Option<&'a [Action]>)>,
    /// How often a sink acknowledged a topic of a signal.
    delivered: HashMap<(&'a str, &'a str, &'a str), u32>,
    /// When the last record with a time of its own was written.
    written: u64,
}

impl<'a> Timeline<'a> {
    fn of(mut self, entries: &'a [RecordLine]) -> Vec<StoryLine> {
        for entry in entries {
            match entry {
                RecordLine::Ruled(ruled) => self.ruled(ruled),
                RecordLine::Delivered(delivered) => self.delivered(delivered),
                RecordLine::Resumed(resumed) => self.resumed(resumed),
                RecordLine::Journaled(journaled) => self.journaled(journaled),
                RecordLine::Recovered(recovery) => {
                    self.written = self.written.max(recovery.at_ms);
                    self.at(recovery.at_ms, Yellow, render::recovered(recovery));
                }
                RecordLine::Chain(_) | RecordLine::Unknown => {}
            }
        }
        in_order(self.lines)
    }

    fn at(&mut self, at: u64, colour: Colour, text: String) {
        self.lines.push(StoryLine { at: Some(at), text, colour: Some(colour) });
    }

    fn below(&mut self, colour: Option<Colour>, text: String) {
        self.lines.push(StoryLine { at: None, text, colour });
    }

    fn ruled(&mut self, ruled: &'a Ruled) {
        let signal = &ruled.signal;
        let at = signal.at.received_ms;
        let before = self.ruled.insert(&signal.id, (at, Some(ruled.actions.as_slice())));
        let mut marks: Vec<String> = render::marks(signal).into_iter().map(str::to_owned).collect();
        if before.is_some() {
            marks.push("repeated, under the same id".to_owned());
        }
        if let Some(since) = signal.at.wall_ms.map(|wall| at.saturating_sub(wall))
            && (LATE..WRONG_CLOCK).contains(&since)
        {
            marks.push(format!("by its own clock {} before", span(Duration::from_millis(since))));
        }
        let marks: String = marks.iter().map(|mark| format!(" [{mark}]")).collect();
        let colour = if marks.is_empty() { Bold } else { Yellow };
        self.at(at, colour, format!("{}{marks}", render::happened(signal)));
        for (key, value) in &signal.attributes {
            self.below(Some(Dim), format!("{key}: {value}"));
        }
        if before.is_some_and(|(_, actions)| actions == Some(ruled.actions.as_slice())) {
            return self.below(None, format!("ruled as before: {}", render::decided(ruled)));
        }
        let opinions = render::opinions(ruled);
        if opinions.is_empty() {
            self.below(None, render::decided(ruled));
        }
        for (opinion, failed) in opinions {
            self.below(failed.then_some(Red), opinion);
        }
        for planned in render::planned(ruled) {
            self.below(Some(Dim), planned);
        }
    }

    /// A ruling of an earlier run of the router is delivered now. Its record may be lost.
    fn resumed(&mut self, resumed: &'a Resumed) {
        let (id, at) = (resumed.id.as_str(), resumed.at_ms);
        if let Some(signal) = resumed.signal.as_ref().filter(|_| !self.ruled.contains_key(id)) {
            let happened = format!("{} [ruled before the router died]", render::happened(signal));
            self.at(signal.at.received_ms, Yellow, happened);
        }
        self.written = self.written.max(at);
        self.at(at, Yellow, format!("delivery resumed: {}", resumed.topics.join(", ")));
        // The wait of its deliveries is counted from here.
        self.ruled.entry(id).or_insert((at, None)).0 = at;
    }

    /// A signal that the audit has too is shown once.
    fn journaled(&mut self, journaled: &'a Journaled) {
        let is_known = self.ruled.contains_key(journaled.id.as_str());
        let state = match journaled.state {
            JournalState::Accepted => "not ruled yet",
            JournalState::Ruled => "ruled, and not delivered yet",
            JournalState::Done if is_known => return,
            JournalState::Done => "done",
        };
        match journaled.signal.as_ref().filter(|_| !is_known) {
            None => self.below(Some(Yellow), format!("in the journal: {state}")),
            Some(signal) => {
                let happened = render::happened(signal);
                self.at(signal.at.received_ms, Yellow, format!("{happened} [in the journal: {state}]"));
            }
        }
    }

    fn delivered(&mut self, delivered: &'a Delivered) {
        let Delivered { id, sink, topic, waited_ms, .. } = delivered;
        let is_delivered = render::is_delivered(delivered);
        let mut outcome = render::outcome(delivered);
        if is_delivered {
            let times = self.delivered.entry((id.as_str(), sink.as_str(), topic.as_str())).or_default();
            *times += 1;
            if *times > 1 && delivered.outcome != DeliveredOutcome::Repeated {
                outcome.push_str(" [again, the same event id]");
            }
        }
        let colour = if is_delivered { Green } else { Red };
        let Some((ruled, _)) = self.ruled.get(id.as_str()) else {
            return self.below(Some(colour), outcome);
        };
        // Its record has no time, but how long it waited since its ruling, which is a little after
        // the signal was received: never before what was written before it.
        self.written = self.written.max(ruled.saturating_add(*waited_ms));
        self.at(self.written, colour, outcome);
    }
}

/// By time, each with the lines that belong to it. A ruling is written when it is made, which may
/// be after deliveries that ended later than its signal was received.
fn in_order(lines: Vec<StoryLine>) -> Vec<StoryLine> {
    let mut groups: Vec<Vec<StoryLine>> = Vec::new();
    for line in lines {
        match groups.last_mut() {
            Some(group) if line.at.is_none() => group.push(line),
            _ => groups.push(vec![line]),
        }
    }
    groups.sort_by_key(|group| group.first().and_then(|line| line.at));
    groups.into_iter().flatten().collect()
}

/// A signal that was received so long after it happened is marked.
const LATE: u64 = 500;
/// A clock that is a day behind is wrong, and the signal is not late.
const WRONG_CLOCK: u64 = 24 * 60 * 60 * 1_000;

#[cfg(test)]
mod tests;
