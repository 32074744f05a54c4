//! The poll schedule of an OOM counter after the kernel's notice that memory ran out.

use std::time::Duration;

use coroner_cgroup::Version;
use tokio::time::Instant;

/// cgroup v1 notifies before it kills, by about a millisecond on an idle machine: the counter is
/// polled at short intervals until the kill. Notices are rare there, one for each time that memory
/// ran out.
const CLOSE_GAP: Duration = Duration::from_micros(200);
const CLOSE_POLLS: usize = 25;
/// Intervals after that, and on v2, which notifies at the kill but may delay a notice.
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
}

impl PollSchedule {
    /// Restarts the schedule after a notice; `found`: the counter already has the kill.
    pub(super) fn begin(&mut self, version: Version, found: bool) {
        self.close_left = if version == Version::V1 && !found { CLOSE_POLLS } else { 0 };
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
        schedule.begin(version, found_at == Some(0));
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
        assert_eq!(gaps(Version::V2, None), GAPS);
        assert_eq!(gaps(Version::V2, Some(0)), GAPS);
        assert_eq!(gaps(Version::V1, Some(0)), GAPS);
        let v1 = gaps(Version::V1, None);
        assert_eq!((v1.len(), v1[0], v1[24], &v1[25..]), (31, CLOSE_GAP, CLOSE_GAP, &GAPS[..]));
        let found = gaps(Version::V1, Some(3));
        assert_eq!((&found[..3], &found[3..]), (&[CLOSE_GAP; 3][..], &GAPS[1..]));
    }

    #[test]
    fn schedule_without_counter_is_empty() {
        let mut schedule = PollSchedule::default();
        schedule.begin(Version::V1, false);
        schedule.end();
        schedule.polled();
        assert_eq!(schedule.gap(), None);
        schedule.begin(Version::V1, false);
        assert_eq!(schedule.gap(), Some(CLOSE_GAP));
    }
}
