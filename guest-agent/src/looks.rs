//! When to look again at what the kernel gives no notice of, with growing gaps.

use std::time::Duration;

use tokio::time::Instant;

/// The memory cgroup's v1 event comes some 10 ms before its counter moves: about 2 s of looks, most of them early.
const KILL_GAPS: [u16; 17] = [1, 2, 4, 8, 16, 32, 64, 128, 200, 200, 200, 200, 200, 200, 200, 200, 200];
/// A runtime's init stands in its cgroup for a few ms before the program begins; slow runtimes take seconds.
const INIT_GAPS: [u16; 18] =
    [1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000, 2000, 2000, 2000];

/// A series of looks.
#[derive(Debug)]
pub(crate) struct Looks {
    gaps: &'static [u16],
    step: usize,
    next: Option<Instant>,
}

impl Looks {
    pub(crate) fn kills() -> Self {
        Self { gaps: &KILL_GAPS, step: 0, next: None }
    }

    pub(crate) fn init() -> Self {
        Self { gaps: &INIT_GAPS, step: 0, next: None }
    }

    /// Begins anew; gives the time of the first look.
    pub(crate) fn begin(&mut self, now: Instant) -> Option<Instant> {
        self.step = 0;
        self.plan(now)
    }

    pub(crate) fn end(&mut self) {
        self.next = None;
    }

    /// Whether a look is due; if so, also the time of the next.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Option<Instant>> {
        self.next.filter(|next| *next <= now)?;
        Some(self.plan(now))
    }

    fn plan(&mut self, now: Instant) -> Option<Instant> {
        self.next = self.gaps.get(self.step).map(|gap| now + Duration::from_millis((*gap).into()));
        self.step += 1;
        self.next
    }
}

/// Between two looks at a counter for the kernel's notices alone, which come up to a hundred times a second for as long as a container is short
/// of memory: at first, and when they do not stop.
const NOTICE_GAP: Duration = Duration::from_millis(4);
const LONGEST_NOTICE_GAP: Duration = Duration::from_millis(64);

/// Notices of a counter that changed, and the looks for them.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    looked: Option<Instant>,
    gap: Duration,
    next: Option<Instant>,
}

impl Notices {
    /// One came. Whether to look at once; else, for the first that has to wait, when.
    pub(crate) fn came(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let since = self.looked.map(|looked| now.saturating_duration_since(looked));
        if since.is_none_or(|since| since >= 2 * LONGEST_NOTICE_GAP) {
            self.gap = Duration::ZERO;
        }
        let at = self.looked.map_or(now, |looked| looked + self.gap);
        if at <= now {
            self.looked(now);
            return Ok(());
        }
        Err(self.next.replace(at).is_none().then_some(at))
    }

    /// Whether a look is due.
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.looked(now);
        }
        due
    }

    fn looked(&mut self, now: Instant) {
        self.looked = Some(now);
        self.next = None;
        self.gap = (2 * self.gap).clamp(NOTICE_GAP, LONGEST_NOTICE_GAP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_go_on_for_two_seconds_and_end() {
        let (begun, mut looks) = (Instant::now(), Looks::kills());
        assert_eq!(looks.due(begun), None);
        let (mut now, mut count) = (begun, 0);
        let mut next = looks.begin(now);
        while let Some(at) = next {
            assert_eq!(looks.due(now), None, "not before its time");
            (now, count) = (at, count + 1);
            next = looks.due(now).unwrap();
        }
        assert_eq!(count, KILL_GAPS.len());
        assert!((1900..2200).contains(&(now - begun).as_millis()));
        assert_eq!(looks.due(now + Duration::from_secs(9)), None);
    }

    #[test]
    fn notices_without_end_cost_few_looks_and_the_last_is_looked_at() {
        let (begun, mut notices) = (Instant::now(), Notices::default());
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(notices.came(at(0)), Ok(()), "the first at once");
        let (mut looks, mut next, mut last) = (1, None, 0);
        for ms in 1..=2000 {
            if next.is_some_and(|next| next <= at(ms)) {
                assert!(notices.due(at(ms)));
                (looks, next, last) = (looks + 1, None, ms);
            }
            match notices.came(at(ms)) {
                Ok(()) => (looks, last) = (looks + 1, ms),
                Err(Some(planned)) => next = Some(planned),
                Err(None) => assert!(next.is_some(), "one that waits is looked at"),
            }
        }
        assert!((30..45).contains(&looks), "{looks}");
        let planned = next.expect("the last is not looked at yet");
        assert!(planned <= at(last + 64) && notices.due(planned));
        assert!(!notices.due(planned), "once");
        assert_eq!(notices.came(at(9000)), Ok(()), "after a pause at once");
        assert_eq!(notices.came(at(9001)), Err(Some(at(9004))));
    }
}
