//! Reports pressure: triggers that fired, and throttling at `memory.high`.
//!
//! A trigger is a descriptor that the kernel signals at most once per window. A rate limit halves
//! that again: a container that is short of memory for an hour causes 3,600 signals instead of
//! 7,200.

use std::time::Duration;

use coroner_proto::agent::{Pressure, PressureOf};
use tokio::time::Instant;

use crate::pressure::{PsiLine, PsiTrigger};
use crate::shared_state::now;
use crate::watcher::Watcher;
use crate::watcher::psi_triggers::RegisteredTriggers;

/// Shortest time between two signals of one line of one container.
const GAP: Duration = Duration::from_secs(1);

/// A container's PSI triggers, and the latest reports of its pressure.
#[derive(Debug, Default)]
pub(crate) struct PressureState {
    pub(crate) registered: RegisteredTriggers,
    /// When its triggers are due to be registered.
    pub(crate) register_at: Option<Instant>,
    /// Triggers that a reader requested in place of the configured ones.
    pub(crate) requested: Option<Box<[PsiTrigger]>>,
    reports: Vec<LastReport>,
    /// `high` of memory.events, as last reported.
    high: Option<u64>,
}

#[derive(Debug)]
struct LastReport {
    line: PsiLine,
    at: Instant,
    total_us: u64,
}

impl Watcher {
    /// A trigger fired, or its cgroup is gone.
    pub(crate) fn pressure_rose(&mut self, key: u32, at: usize, gone: bool) {
        if gone {
            self.release_triggers(key);
            return;
        }
        let Some(container) = self.containers.get(&key) else { return };
        let Some((line, _)) = container.pressure.registered.get(at) else { return };
        let line = *line;
        self.record_pressure(key, line);
        self.check_memory_of(key);
    }

    /// Reports throttling if `high`, as just read from memory.events, has risen.
    pub(crate) fn throttled(&mut self, key: u32, high: Option<u64>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(high) = high else { return };
        let before = *container.pressure.high.get_or_insert(high);
        if high > before {
            self.record_pressure(key, PsiLine { of: PressureOf::PRESSURE_OF_MEMORY, full: false });
        }
    }

    fn record_pressure(&mut self, key: u32, line: PsiLine) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (at, pressure) = (Instant::now(), &mut container.pressure);
        let place = pressure.reports.iter().position(|report| report.line == line);
        let before = place.and_then(|place| pressure.reports.get(place));
        if container.gone || before.is_some_and(|report| at < report.at + GAP) {
            return;
        }
        let path = self.hierarchy.folder(&container.cgroup).join(line.file());
        let Some(read) = crate::cgroup::read(&path, 512).ok().and_then(|text| parse(&text, line.full)) else {
            return;
        };
        let stalled_us = before.map(|report| read.total_us.saturating_sub(report.total_us));
        let report = LastReport { line, at, total_us: read.total_us };
        match place.and_then(|place| pressure.reports.get_mut(place)) {
            Some(before) => *before = report,
            None => pressure.reports.push(report),
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
    fn truncated_pressure_lines_are_rejected() {
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
