//! The signals of a container on one line of time, which ends at its death.

use std::collections::HashSet;
use std::time::Duration;

use coroner_core::signal::{Event, Signal};

use super::html::{Html, Px};
use super::plot::{WIDTH, label_at, line};
use super::zero::Zero;
use super::{section, unknown};
use crate::explain::reading::{ReadRecords, signal_of};
use crate::render::record::RecordLine;
use crate::render::{clock, happened, signal_name, span};

/// Signals that are shown, of those that are not pressure. A container may be signalled for as long
/// as it runs.
const SIGNALS: usize = 30;
/// Signals of pressure that are shown.
const PRESSURE: usize = 10;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 40.0;
const ROW: f64 = 34.0;
const TOP: f64 = 26.0;
/// Width of a character of a name, at most.
const CHARACTER: f64 = 7.6;
/// Times are on a logarithmic scale from here on, in seconds: a kill is milliseconds before its
/// exit, and a request may be an hour before.
const LINEAR: f64 = 0.01;
/// Times with a name, in seconds.
const TICKS: [(f64, &str); 8] = [
    (0.01, "10 ms"),
    (0.1, "0.1 s"),
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3_600.0, "1 h"),
    (86_400.0, "1 d"),
];

/// A signal, and its seconds from the death.
struct Mark<'a> {
    signal: &'a Signal,
    at: f64,
}

/// The rows of the picture.
const ROWS: [&str; 5] = ["Kill requests", "OOM kills", "Ends", "Pressure", "Other"];

fn row(event: &Event) -> usize {
    match event {
        Event::KillRequest(_) => 0,
        Event::OomKill(_) => 1,
        Event::Exited(_) | Event::GuestLost(_) => 2,
        Event::Pressure(_) => 3,
        Event::Evidence(_) | Event::Other(_) | Event::Forwarded(_) => 4,
    }
}

pub(super) fn write(html: &mut Html, reading: &ReadRecords) {
    section(html, "Signals", |html| {
        let Some(zero) = Zero::of_end(reading) else {
            return unknown(html, "no record of this container has a signal that can be read.");
        };
        let (marks, left_out) = marks(reading, &zero);
        picture(html, &marks, zero.name);
        table(html, &marks);
        if left_out > 0 {
            let text = format!("{left_out} more signals are not shown here; coroner explain lists them.");
            html.with("p", &[("class", &"note")], text);
        }
    });
}

/// The signals to show by time, and how many are left out.
fn marks<'a>(reading: &'a ReadRecords, zero: &Zero<'a>) -> (Vec<Mark<'a>>, usize) {
    let mut seen = HashSet::new();
    let journaled = |it: &'a RecordLine| match it {
        RecordLine::Journaled(it) => it.signal.as_ref(),
        _ => None,
    };
    let signals = reading.entries.iter().filter_map(|it| signal_of(it).or_else(|| journaled(it)));
    let mut marks: Vec<Mark<'a>> = signals
        // The evidence of a kill is not an event of its own.
        .filter(|it| !matches!(it.event, Event::Evidence(_)) && seen.insert(it.id.as_str()))
        .map(|signal| Mark { signal, at: zero.to(signal) as f64 / 1e9 })
        .collect();
    marks.sort_by(|one, other| one.at.total_cmp(&other.at));
    let all = marks.len();
    let (mut signals, mut pressure) = (0, 0);
    let mut keep: Vec<bool> = Vec::new();
    for mark in marks.iter().rev() {
        let is_pressure = matches!(mark.signal.event, Event::Pressure(_));
        let (count, most) = if is_pressure { (&mut pressure, PRESSURE) } else { (&mut signals, SIGNALS) };
        *count += 1;
        keep.push(*count <= most);
    }
    let mut keep = keep.into_iter().rev();
    marks.retain(|_| keep.next() == Some(true));
    let left_out = all - marks.len();
    (marks, left_out)
}

/// Where a time is, before the picture's scale.
fn scaled(seconds: f64) -> f64 {
    (1.0 + seconds.abs() / LINEAR).log10().copysign(seconds)
}

/// From time to place.
struct TimeScale {
    from: f64,
    to: f64,
}

impl TimeScale {
    fn of(marks: &[Mark<'_>]) -> Self {
        let times = || marks.iter().map(|it| scaled(it.at));
        let (from, to) = (times().fold(-1.0, f64::min), times().fold(0.0, f64::max));
        Self { from, to: to.max(from * -0.12) }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (scaled(seconds) - self.from) / (self.to - self.from) * (WIDTH - LEFT - RIGHT)
    }

    /// Times with a name, not nearer to each other than their names are wide.
    fn ticks(&self) -> Vec<(f64, String)> {
        let named = |sign: f64, mark: &'static str| {
            TICKS.iter().map(move |(at, name)| (at * sign, format!("{mark}{name}")))
        };
        let mut ticks: Vec<(f64, String)> = vec![(0.0, "0".to_owned())];
        for (at, name) in named(-1.0, "\u{2212}").chain(named(1.0, "+")) {
            let x = self.x(at);
            let is_free = ticks.iter().all(|(other, _)| (self.x(*other) - x).abs() > 56.0);
            if (self.from..=self.to).contains(&scaled(at)) && is_free {
                ticks.push((at, name));
            }
        }
        ticks
    }
}

fn picture(html: &mut Html, marks: &[Mark<'_>], zero: &'static str) {
    let rows: Vec<usize> =
        (0..ROWS.len()).filter(|it| marks.iter().any(|mark| row(&mark.signal.event) == *it)).collect();
    let scale = TimeScale::of(marks);
    let bottom = TOP + ROW * rows.len() as f64;
    let view = format!("0 0 {WIDTH} {}", bottom + 32.0);
    let label = "Signals by kind and time before the death";
    html.element("figure", &[], |html| {
        html.element("svg", &[("viewBox", &view), ("role", &"img"), ("aria-label", &label)], |html| {
            for (at, name) in scale.ticks() {
                line(html, "grid", (scale.x(at), TOP), (scale.x(at), bottom));
                label_at(html, "tick middle", (scale.x(at), bottom + 20.0), name);
            }
            line(html, "zero", (scale.x(0.0), TOP - 4.0), (scale.x(0.0), bottom));
            label_at(html, "name end", (scale.x(0.0) + 4.0, TOP - 10.0), zero);
            for (at, row) in rows.iter().enumerate() {
                draw_row(html, marks, *row, TOP + ROW * (at as f64 + 0.5), &scale);
            }
        });
        let text = format!("Time before and after {zero}, on a logarithmic scale.");
        html.with("figcaption", &[], text);
    });
}

fn draw_row(html: &mut Html, marks: &[Mark<'_>], at: usize, y: f64, scale: &TimeScale) {
    label_at(html, "tick end", (LEFT - 14.0, y + 4.5), ROWS[at]);
    line(html, "row", (LEFT, y), (WIDTH - RIGHT, y));
    let class = ["request", "kill", "exit", "pressure", "other"][at];
    let marks: Vec<&Mark<'_>> = marks.iter().filter(|it| row(&it.signal.event) == at).collect();
    for (index, mark) in marks.iter().enumerate() {
        let x = scale.x(mark.at);
        html.element("circle", &[("class", &class), ("cx", &Px(x)), ("cy", &Px(y)), ("r", &"6")], |html| {
            html.with("title", &[], happened(mark.signal));
        });
        // A name is written where it overlaps neither its neighbours nor the edges.
        let Some(name) = short(mark.signal) else { continue };
        let width = name.chars().count() as f64 * CHARACTER + 14.0;
        let before = index.checked_sub(1).map_or(LEFT, |it| scale.x(marks[it].at) + 8.0);
        let after = marks.get(index + 1).map_or(WIDTH, |it| scale.x(it.at) - 8.0);
        if x - width > before {
            label_at(html, "name end", (x - 11.0, y + 4.5), name);
        } else if x + width < after {
            label_at(html, "name start", (x + 11.0, y + 4.5), name);
        }
    }
}

/// A signal in one word.
fn short(signal: &Signal) -> Option<String> {
    match &signal.event {
        Event::KillRequest(request) => Some(signal_name(request.signal)),
        Event::OomKill(kill) => kill.added.map(|added| format!("+{added}")),
        Event::Exited(exited) => {
            Some(exited.status.map_or("status unknown".to_owned(), |it| format!("status {it}")))
        }
        Event::GuestLost(_) => Some("guest lost".to_owned()),
        Event::Pressure(_) | Event::Evidence(_) | Event::Other(_) | Event::Forwarded(_) => None,
    }
}

fn table(html: &mut Html, marks: &[Mark<'_>]) {
    html.element("table", &[], |html| {
        html.element("thead", &[], |html| {
            html.element("tr", &[], |html| {
                html.with("th", &[("class", &"number")], "Time");
                html.with("th", &[], "Signal");
                html.with("th", &[("class", &"number")], "Received, UTC");
            });
        });
        html.element("tbody", &[], |html| {
            for mark in marks {
                html.element("tr", &[], |html| {
                    html.with("td", &[("class", &"number")], offset(mark.at));
                    html.with("td", &[], happened(mark.signal));
                    html.with("td", &[("class", &"number")], clock(mark.signal.at.received_ms));
                });
            }
        });
    });
}

/// `−4 ms`, `0`.
pub(super) fn offset(seconds: f64) -> String {
    let distance = span(Duration::try_from_secs_f64(seconds.abs()).unwrap_or(Duration::MAX));
    match distance.as_str() {
        "0 ms" => "0".to_owned(),
        _ if seconds < 0.0 => format!("\u{2212}{distance}"),
        _ => format!("+{distance}"),
    }
}
