//! Pressure: PSI triggers of each container, and throttling at `memory.high`. Documentation/accounting/psi.rst.
//!
//! A trigger is a descriptor that the kernel signals at most once a window; what is told of it is limited once more, so that a container that
//! is short of memory for an hour costs 3,600 signals and not 7,200.

use std::str::FromStr;
use std::time::Duration;

use coroner_proto::agent::{Pressure, PressureOf};
use tokio::time::Instant;

use crate::arming::Armed;
use crate::shared::now;
use crate::watcher::Watcher;

/// Between two signals of one line of one container.
const GAP: Duration = Duration::from_secs(1);
/// Lines there are: memory, cpu and io, some and full.
pub(crate) const LINES: usize = 6;
/// What the kernel takes as a window: psi_trigger_create in kernel/sched/psi.c.
const WINDOW: std::ops::RangeInclusive<u32> = 500_000..=10_000_000;

/// A line of PSI, and when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Memory, cpu or io.
    pub of: PressureOf,
    /// The line `full`, else `some`.
    pub full: bool,
    /// Stall within the window, in microseconds.
    pub stall_us: u32,
    /// The window, in microseconds.
    pub window_us: u32,
}

impl Trigger {
    /// Slow reclaim trips it about 1.5 s before an OOM kill; a busy container does not.
    pub const DEFAULT: Self =
        Self { of: PressureOf::PRESSURE_OF_MEMORY, full: false, stall_us: 50_000, window_us: 500_000 };

    /// Why the kernel would refuse it; none if it would not.
    pub fn wrong(&self) -> Option<&'static str> {
        match self {
            _ if !WINDOW.contains(&self.window_us) => Some("the window is not 500ms to 10s"),
            _ if self.stall_us == 0 || self.stall_us > self.window_us => {
                Some("the stall is not above 0 and at most the window")
            }
            _ if self.of == PressureOf::PRESSURE_OF_UNKNOWN => Some("it is none of memory, cpu and io"),
            _ => None,
        }
    }

    pub(crate) fn line(&self) -> Line {
        Line { of: self.of, full: self.full }
    }
}

/// Which containers a trigger is for, and which trigger; none for "watch nothing".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// An id, or the start of one and a `*`; none for all that no other rule names.
    pub container: Option<String>,
    /// What to watch.
    pub trigger: Option<Trigger>,
}

/// Why a text is no rule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not [ID=]OF:LINE:STALL/WINDOW, such as memory:some:50ms/500ms: {wrong}")]
pub struct RuleError {
    text: String,
    wrong: &'static str,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = |wrong| RuleError { text: text.to_owned(), wrong };
        let (container, rest) = match text.split_once('=') {
            Some(("", _)) => return Err(wrong("the id is empty")),
            Some((id, rest)) => (Some(id.to_owned()), rest),
            None => (None, text),
        };
        if rest == "none" {
            return Ok(Self { container, trigger: None });
        }
        let parts: Vec<&str> = rest.split([':', '/']).collect();
        let [of, line, stall, window] = parts[..] else { return Err(wrong("it has not four parts")) };
        let of = match of {
            "memory" => PressureOf::PRESSURE_OF_MEMORY,
            "cpu" => PressureOf::PRESSURE_OF_CPU,
            "io" => PressureOf::PRESSURE_OF_IO,
            _ => return Err(wrong("it is none of memory, cpu and io")),
        };
        let full = match line {
            "some" => false,
            "full" => true,
            _ => return Err(wrong("the line is neither some nor full")),
        };
        let time =
            |text: &str| microseconds(text).ok_or_else(|| wrong("times are written 50ms, 1s or 500us"));
        let trigger = Trigger { of, full, stall_us: time(stall)?, window_us: time(window)? };
        trigger.wrong().map_or(Ok(Self { container, trigger: Some(trigger) }), |why| Err(wrong(why)))
    }
}

fn microseconds(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// The triggers of a container: those that name it, else those that name none.
pub(crate) fn for_container(rules: &[Rule], id: &str) -> Vec<Trigger> {
    let named = |rule: &&Rule| {
        rule.container.as_deref().is_some_and(|pattern| match pattern.strip_suffix('*') {
            Some(start) => id.starts_with(start),
            None => id == pattern,
        })
    };
    let own: Vec<&Rule> = rules.iter().filter(named).collect();
    let chosen =
        if own.is_empty() { rules.iter().filter(|it| it.container.is_none()).collect() } else { own };
    let mut triggers: Vec<Trigger> = chosen.into_iter().filter_map(|rule| rule.trigger).collect();
    triggers.truncate(LINES);
    triggers
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    of: PressureOf,
    full: bool,
}

impl Line {
    pub(crate) fn file(self) -> &'static str {
        match self.of {
            PressureOf::PRESSURE_OF_CPU => "cpu.pressure",
            PressureOf::PRESSURE_OF_IO => "io.pressure",
            PressureOf::PRESSURE_OF_MEMORY | PressureOf::PRESSURE_OF_UNKNOWN => "memory.pressure",
        }
    }
}

/// What a container's pressure files are watched with, and what was told of them.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) armed: Armed,
    /// When they are armed.
    pub(crate) arm_at: Option<Instant>,
    /// What somebody asked for in place of the usual ones.
    pub(crate) asked: Option<Box<[Trigger]>>,
    told: Vec<Told>,
    /// `high` of memory.events, as last told.
    high: Option<u64>,
}

#[derive(Debug)]
struct Told {
    line: Line,
    at: Instant,
    total_us: u64,
}

impl Watcher {
    /// A trigger fired, or its cgroup is gone.
    pub(crate) fn pressure_rose(&mut self, key: u32, at: usize, gone: bool) {
        if gone {
            self.disarm(key);
            return;
        }
        let Some(container) = self.containers.get(&key) else { return };
        let Some((line, _)) = container.pressure.armed.get(at) else { return };
        let line = *line;
        self.tell_pressure(key, line);
    }

    /// `high` of memory.events as it was just read.
    pub(crate) fn throttled(&mut self, key: u32, high: Option<u64>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(high) = high else { return };
        let before = *container.pressure.high.get_or_insert(high);
        if high > before {
            self.tell_pressure(key, Line { of: PressureOf::PRESSURE_OF_MEMORY, full: false });
        }
    }

    fn tell_pressure(&mut self, key: u32, line: Line) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (at, pressure) = (Instant::now(), &mut container.pressure);
        let place = pressure.told.iter().position(|told| told.line == line);
        let before = place.and_then(|place| pressure.told.get(place));
        if container.gone || before.is_some_and(|told| at < told.at + GAP) {
            return;
        }
        let path = self.hierarchy.folder(&container.cgroup).join(line.file());
        let Some(read) = crate::cgroup::read(&path, 512).ok().and_then(|text| parse(&text, line.full)) else {
            return;
        };
        let stalled_us = before.map(|told| read.total_us.saturating_sub(told.total_us));
        let told = Told { line, at, total_us: read.total_us };
        match place.and_then(|place| pressure.told.get_mut(place)) {
            Some(before) => *before = told,
            None => pressure.told.push(told),
        }
        let memory = line.of == PressureOf::PRESSURE_OF_MEMORY;
        let high = memory.then(|| self.hierarchy.high(&container.cgroup)).flatten();
        pressure.high = high.or(pressure.high);
        let signal = Pressure { of: line.of.into(), full: line.full, stalled_us, high_events: high, ..read };
        self.shared.with(|state| state.pressure(&container.id, signal, now()));
    }
}

/// `some avg10=0.12 avg60=0.05 avg300=0.01 total=12345`
fn parse(text: &str, full: bool) -> Option<Pressure> {
    let rest = text.lines().find_map(|line| line.strip_prefix(if full { "full " } else { "some " }))?;
    let value =
        |key: &str| rest.split_whitespace().find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    Some(Pressure {
        avg10_centi: centi(value("avg10")?)?,
        avg60_centi: centi(value("avg60")?)?,
        total_us: value("total")?.parse().ok()?,
        ..Pressure::default()
    })
}

/// "1.23" as 123: the kernel writes two digits after the point.
fn centi(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != 2 {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_wrong_ones_say_why() {
        let rule: Rule = "memory:some:50ms/500ms".parse().unwrap();
        assert_eq!(rule, Rule { container: None, trigger: Some(Trigger::DEFAULT) });
        let rule: Rule = "db-*=io:full:100ms/1s".parse().unwrap();
        assert_eq!(rule.container.as_deref(), Some("db-*"));
        let trigger = rule.trigger.unwrap();
        assert_eq!((trigger.full, trigger.stall_us, trigger.window_us), (true, 100_000, 1_000_000));
        assert_eq!("none".parse::<Rule>().unwrap().trigger, None);
        for (bad, why) in [
            ("", "four parts"),
            ("memory:some:50ms", "four parts"),
            ("disk:some:50ms/500ms", "none of memory"),
            ("memory:all:50ms/500ms", "neither some"),
            ("memory:some:50/500ms", "written"),
            ("memory:some:50ms/400ms", "window"),
            ("memory:some:50ms/11s", "window"),
            ("memory:some:0ms/500ms", "stall"),
            ("memory:some:600ms/500ms", "stall"),
            ("memory:some:4294968s/500ms", "written"),
            ("=memory:some:50ms/500ms", "id is empty"),
        ] {
            let error = bad.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_containers_own_rules_replace_the_others() {
        let rules: Vec<Rule> =
            ["memory:some:50ms/500ms", "cpu:some:1s/2s", "db-*=io:full:1s/2s", "quiet=none"]
                .map(|text| text.parse().unwrap())
                .into();
        let of = |id| for_container(&rules, id).into_iter().map(|it| it.of).collect::<Vec<_>>();
        assert_eq!(of("web"), [PressureOf::PRESSURE_OF_MEMORY, PressureOf::PRESSURE_OF_CPU]);
        assert_eq!(of("db-1"), [PressureOf::PRESSURE_OF_IO]);
        assert_eq!(of("quiet"), []);
    }

    #[test]
    fn the_kernels_lines_are_read_and_torn_ones_are_none() {
        let text = "some avg10=1.23 avg60=0.05 avg300=0.01 total=12345\nfull avg10=100.00 avg60=0.00 avg300=0.00 total=7\n";
        let some = parse(text, false).unwrap();
        assert_eq!((some.avg10_centi, some.avg60_centi, some.total_us), (123, 5, 12_345));
        assert_eq!(parse(text, true).unwrap().avg10_centi, 10_000);
        for bad in [
            "",
            "some",
            "some avg10=1.2 avg60=0.05 total=1",
            "some avg10=1.23 avg60=0.05",
            "some avg10=x total=1",
        ] {
            assert_eq!(parse(bad, false), None, "{bad:?}");
        }
        assert_eq!(parse("some avg10=1.23 avg60=0.05 total=1", true), None);
    }
}
