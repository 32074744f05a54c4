//! The moment that the times on the page are relative to: the death.

use coroner_core::signal::{Moment, Signal};

use crate::explain::reading::{ReadRecords, signal_of};
use crate::render::record::RecordLine;

/// An exit this long after a kill, in nanoseconds, is a part of the same death. The pictures show
/// the minute before the kill: with a later exit as their zero, that would be far to the left.
const SAME_DEATH: i64 = 5_000_000_000;

/// A death, or the last signal of a container that runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zero<'a> {
    /// `the exit`, `the kill` or `the last signal`.
    pub(super) name: &'static str,
    pub(super) at: Moment,
    node: &'a str,
    guest: Option<&'a str>,
}

impl<'a> Zero<'a> {
    /// The end; `None`: there is no signal.
    pub(super) fn of_end(reading: &'a ReadRecords) -> Option<Self> {
        let signals = || reading.entries.iter().rev().filter_map(signal_of);
        let exit = signals().find(|it| it.exit_of_init().is_some()).map(|it| Self::new("the exit", it));
        exit.or_else(|| Self::of_kill(reading)).or_else(|| {
            let journaled = reading.entries.iter().rev().filter_map(|it| match it {
                RecordLine::Journaled(it) => it.signal.as_ref(),
                _ => None,
            });
            signals().chain(journaled).next().map(|it| Self::new("the last signal", it))
        })
    }

    /// The end, or the last kill if that was long before it.
    pub(super) fn near_kill(reading: &'a ReadRecords) -> Option<Self> {
        let (end, kill) = (Self::of_end(reading)?, Self::of_kill(reading));
        let is_near = |kill: &Self| (0..=SAME_DEATH).contains(&-end.until(kill));
        Some(kill.filter(|kill| !is_near(kill)).unwrap_or(end))
    }

    pub(super) fn of_kill(reading: &'a ReadRecords) -> Option<Self> {
        let id = &reading.verdict.kill.as_ref()?.id;
        let kill = reading.entries.iter().filter_map(signal_of).find(|it| it.id == *id)?;
        Some(Self::new("the kill", kill))
    }

    fn new(name: &'static str, signal: &'a Signal) -> Self {
        let target = &signal.target;
        Self { name, at: signal.at, node: &target.node, guest: target.guest.as_deref() }
    }

    /// Nanoseconds from it to a signal.
    pub(super) fn to(&self, signal: &'a Signal) -> i64 {
        self.until(&Self::new("", signal))
    }

    /// Nanoseconds from it to another. On the boot clock where both are of one machine: a guest has
    /// a clock of its own, and the router's has milliseconds.
    pub(super) fn until(&self, other: &Self) -> i64 {
        match (self.at.boot_ns, other.at.boot_ns) {
            (Some(zero), Some(at)) if (self.node, self.guest) == (other.node, other.guest) => {
                difference(at, zero)
            }
            _ => difference(other.at.received_ms, self.at.received_ms).saturating_mul(1_000_000),
        }
    }
}

fn difference(one: u64, other: u64) -> i64 {
    let distance = i64::try_from(one.abs_diff(other)).unwrap_or(i64::MAX);
    if one < other { -distance } else { distance }
}
