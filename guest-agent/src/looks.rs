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
}
