//! When a counter is looked at after the kernel's notice that memory ran out.

use std::time::Duration;

use coroner_cgroup::Version;
use tokio::time::Instant;

/// v1 tells before it kills, about a millisecond on an idle machine: that kill is looked for closely. Its notices are rare, one for each time that memory ran out.
const CLOSE: Duration = Duration::from_micros(200);
const CLOSELY: usize = 25;
/// After that, and on v2, which tells as it kills, but may hold a notice back.
const GAPS: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
    Duration::from_millis(150),
];

/// Of one container.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Since the notice.
    taken: usize,
    /// The next one.
    pub(super) at: Option<Instant>,
}

impl Looks {
    /// There was a notice.
    pub(super) fn begin(&mut self) {
        self.taken = 0;
    }

    /// There is no counter any more.
    pub(super) fn end(&mut self) {
        self.taken = usize::MAX;
    }

    /// One was taken; if it found the kill, the next need not be as close.
    pub(super) fn took(&mut self, found: bool) {
        self.at = None;
        self.taken = if found { self.taken.max(CLOSELY) } else { self.taken.saturating_add(1) };
    }

    /// Until the next; none: no more are needed.
    pub(super) fn gap(&self, version: Version) -> Option<Duration> {
        match version {
            Version::V1 if self.taken < CLOSELY => Some(CLOSE),
            Version::V1 => GAPS.get(self.taken - CLOSELY).copied(),
            Version::V2 => GAPS.get(self.taken).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(version: Version, found_at: Option<usize>) -> Vec<Duration> {
        let mut looks = Looks::default();
        let mut gaps = Vec::new();
        while let Some(gap) = looks.gap(version) {
            looks.took(found_at == Some(gaps.len()));
            gaps.push(gap);
        }
        gaps
    }

    #[test]
    fn without_a_counter_there_are_none() {
        let mut looks = Looks::default();
        looks.end();
        looks.took(false);
        assert_eq!((looks.gap(Version::V1), looks.gap(Version::V2)), (None, None));
        looks.begin();
        assert!(looks.gap(Version::V1).is_some());
    }

    #[test]
    fn looks_are_close_until_the_kill_is_found_and_end() {
        assert_eq!(gaps(Version::V2, None), GAPS);
        let v1 = gaps(Version::V1, None);
        assert_eq!((v1.len(), v1[0], v1[24], v1[25]), (31, CLOSE, CLOSE, GAPS[0]));
        let found = gaps(Version::V1, Some(3));
        assert_eq!((found.len(), &found[4..]), (10, &GAPS[..]));
    }
}
