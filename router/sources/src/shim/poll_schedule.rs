//! The poll schedule of an OOM counter after the kernel's notice that memory ran out.

use std::time::Duration;

use coroner_cgroup::Version;
use tokio::time::Instant;

/// The kernel notifies before it kills, by about a millisecond on an idle machine: the counter is
/// polled at short intervals until the kill. On cgroup v1 each notice is one time that memory ran
/// out, and they are rare. On v2 the notice that the limit was reached is the first of a series of
/// ten milliseconds, the kernel's own interval: the kill has no notice until the next.
const CLOSE_GAP: Duration = Duration::from_micros(200);
const CLOSE_POLLS: usize = 25;
/// A v2 container that reclaims memory at its limit has a notice every ten milliseconds, for as
/// long as it lives: only the first of a series is followed by polls at short intervals.
const SERIES: Duration = Duration::from_millis(100);
/// Intervals after that.
const GAPS: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
    Duration::from_millis(150),
];

/// The schedule of one container.
#[derive(Debug, Default)]
pub(super) struct PollSchedule {
    /// Polls at the short interval that are left.
    close_left: usize,
    /// Other polls since the notice.
    polls: usize,
    /// Time of the next poll.
    pub(super) at: Option<Instant>,
    /// Time of the last notice.
    noticed: Option<Instant>,
}

impl PollSchedule {
    /// Restarts the schedule after a notice; `found`: the counter already has the kill.
    pub(super) fn begin(&mut self, version: Version, found: bool, now: Instant) {
        let is_first = self.noticed.is_none_or(|before| now.saturating_duration_since(before) >= SERIES);
        self.noticed = Some(now);
        if found {
            self.close_left = 0;
        } else if version == Version::V1 || is_first {
            self.close_left = CLOSE_POLLS;
        }
        self.polls = 0;
    }

    /// Ends the schedule: the counter is gone.
    pub(super) fn end(&mut self) {
        (self.close_left, self.polls) = (0, GAPS.len());
    }

    /// A kill was found: the next poll uses the longer intervals.
    pub(super) fn found(&mut self) {
        self.close_left = 0;
    }

    /// Records that a poll was made.
    pub(super) fn polled(&mut self) {
        self.at = None;
        if self.close_left > 0 {
            self.close_left -= 1;
        } else {
            self.polls += 1;
        }
    }

    /// Delay until the next poll; `None`: no more polls are needed.
    pub(super) fn gap(&self) -> Option<Duration> {
        if self.close_left > 0 { Some(CLOSE_GAP) } else { GAPS.get(self.polls).copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(version: Version, found_at: Option<usize>) -> Vec<Duration> {
        let (mut schedule, mut gaps) = (PollSchedule::default(), Vec::new());
        schedule.begin(version, found_at == Some(0), Instant::now());
        while let Some(gap) = schedule.gap() {
            gaps.push(gap);
            if found_at == Some(gaps.len()) {
                schedule.found();
            }
            schedule.polled();
        }
        gaps
    }

    #[test]
    fn polls_at_short_interval_until_kill_found() {
        for version in [Version::V1, Version::V2] {
            assert_eq!(gaps(version, Some(0)), GAPS);
            let none = gaps(version, None);
            assert_eq!((none.len(), none[0], none[24], &none[25..]), (31, CLOSE_GAP, CLOSE_GAP, &GAPS[..]));
            let found = gaps(version, Some(3));
            assert_eq!((&found[..3], &found[3..]), (&[CLOSE_GAP; 3][..], &GAPS[1..]));
        }
    }

    #[test]
    fn series_of_notices_costs_few_polls() {
        for (version, expect) in [(Version::V1, 100 * CLOSE_POLLS), (Version::V2, CLOSE_POLLS)] {
            let (start, mut schedule, mut close) = (Instant::now(), PollSchedule::default(), 0);
            for notice in 0..100 {
                schedule.begin(version, false, start + notice * Duration::from_millis(10));
                // Ten milliseconds have room for all polls at short intervals.
                while schedule.gap() == Some(CLOSE_GAP) {
                    close += 1;
                    schedule.polled();
                }
            }
            assert_eq!(close, expect, "{version:?}");
            schedule.begin(version, false, start + Duration::from_secs(9));
            assert_eq!(schedule.gap(), Some(CLOSE_GAP), "after a pause");
        }
    }

    #[test]
    fn schedule_without_counter_is_empty() {
        let mut schedule = PollSchedule::default();
        schedule.begin(Version::V1, false, Instant::now());
        schedule.end();
        schedule.polled();
        assert_eq!(schedule.gap(), None);
        schedule.begin(Version::V1, false, Instant::now());
        assert_eq!(schedule.gap(), Some(CLOSE_GAP));
    }
}
