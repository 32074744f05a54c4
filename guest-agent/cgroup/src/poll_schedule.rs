//! Poll schedules: when to poll again for changes that the kernel does not notify, with growing
//! gaps, and how often to poll after notices (a rate limit).

use std::time::Duration;

use tokio::time::Instant;

/// The memory cgroup's v1 event comes some 10 ms before its counter moves: polls for about 2 s,
/// most of them early.
const KILL_GAPS: [u16; 17] = [1, 2, 4, 8, 16, 32, 64, 128, 200, 200, 200, 200, 200, 200, 200, 200, 200];
/// A runtime's init is in its cgroup for a few ms before the program begins; slow runtimes take
/// seconds.
const INIT_GAPS: [u16; 18] =
    [1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000, 2000, 2000, 2000];

/// A series of polls with growing gaps.
#[derive(Debug)]
pub struct PollSchedule {
    gaps: &'static [u16],
    step: usize,
    next: Option<Instant>,
}

impl PollSchedule {
    /// The schedule after a notice that memory ran out: some 2 s.
    pub fn kills() -> Self {
        Self { gaps: &KILL_GAPS, step: 0, next: None }
    }

    /// The schedule after a process entered a container's cgroup: some 10 s.
    pub fn init() -> Self {
        Self { gaps: &INIT_GAPS, step: 0, next: None }
    }

    /// Restarts the series and returns the time of the first poll.
    pub fn begin(&mut self, now: Instant) -> Option<Instant> {
        self.step = 0;
        self.plan(now)
    }

    /// Ends the series: no poll is due until the next [`PollSchedule::begin`].
    pub fn end(&mut self) {
        self.next = None;
    }

    /// Whether a poll is due; if so, also the time of the next one.
    pub fn due(&mut self, now: Instant) -> Option<Option<Instant>> {
        self.next.filter(|next| *next <= now)?;
        Some(self.plan(now))
    }

    fn plan(&mut self, now: Instant) -> Option<Instant> {
        self.next = self.gaps.get(self.step).map(|gap| now + Duration::from_millis((*gap).into()));
        self.step += 1;
        self.next
    }
}

/// Gap between two polls of a counter caused by kernel notices, which arrive up to a hundred times
/// a second while a container is short of memory: the first gap, and the longest while notices
/// continue.
const NOTICE_GAP: Duration = Duration::from_millis(4);
const LONGEST_NOTICE_GAP: Duration = Duration::from_millis(64);

/// Rate limit on the polls that a counter's change notices cause.
#[derive(Debug, Default)]
pub struct NoticeSchedule {
    polled: Option<Instant>,
    gap: Duration,
    next: Option<Instant>,
}

impl NoticeSchedule {
    /// Records a notice. `Ok`: poll now. `Err`: a poll is planned, with its time if this notice is
    /// the first that waits for it.
    pub fn notified(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let since = self.polled.map(|polled| now.saturating_duration_since(polled));
        if since.is_none_or(|since| since >= 2 * LONGEST_NOTICE_GAP) {
            self.gap = Duration::ZERO;
        }
        let at = self.polled.map_or(now, |polled| polled + self.gap);
        if at <= now {
            self.polled(now);
            return Ok(());
        }
        Err(self.next.replace(at).is_none().then_some(at))
    }

    /// Whether a poll is due.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.polled(now);
        }
        due
    }

    fn polled(&mut self, now: Instant) {
        self.polled = Some(now);
        self.next = None;
        self.gap = (2 * self.gap).clamp(NOTICE_GAP, LONGEST_NOTICE_GAP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_polls_end_after_two_seconds() {
        let (begun, mut polls) = (Instant::now(), PollSchedule::kills());
        assert_eq!(polls.due(begun), None);
        let (mut now, mut count) = (begun, 0);
        let mut next = polls.begin(now);
        while let Some(at) = next {
            assert_eq!(polls.due(now), None, "not before its time");
            (now, count) = (at, count + 1);
            next = polls.due(now).unwrap();
        }
        assert_eq!(count, KILL_GAPS.len());
        assert!((1900..2200).contains(&(now - begun).as_millis()));
        assert_eq!(polls.due(now + Duration::from_secs(9)), None);
    }

    #[test]
    fn notice_storm_costs_few_polls_and_last_is_polled() {
        let (begun, mut notices) = (Instant::now(), NoticeSchedule::default());
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(notices.notified(at(0)), Ok(()), "the first at once");
        let (mut polls, mut next, mut last) = (1, None, 0);
        for ms in 1..=2000 {
            if next.is_some_and(|next| next <= at(ms)) {
                assert!(notices.due(at(ms)));
                (polls, next, last) = (polls + 1, None, ms);
            }
            match notices.notified(at(ms)) {
                Ok(()) => (polls, last) = (polls + 1, ms),
                Err(Some(planned)) => next = Some(planned),
                Err(None) => assert!(next.is_some(), "a waiting notice has a poll planned"),
            }
        }
        assert!((30..45).contains(&polls), "{polls}");
        let planned = next.expect("the last notice is not polled yet");
        assert!(planned <= at(last + 64) && notices.due(planned));
        assert!(!notices.due(planned), "once");
        assert_eq!(notices.notified(at(9000)), Ok(()), "after a pause at once");
        assert_eq!(notices.notified(at(9001)), Err(Some(at(9004))));
    }
}
