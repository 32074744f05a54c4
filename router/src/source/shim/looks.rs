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
    /// Close ones that are left.
    close: usize,
    /// The others that were taken since the notice.
    taken: usize,
    /// The next one.
    pub(super) at: Option<Instant>,
}

impl Looks {
    /// There was a notice; `found`: and the kill with it.
    pub(super) fn begin(&mut self, version: Version, found: bool) {
        self.close = if version == Version::V1 && !found { CLOSELY } else { 0 };
        self.taken = 0;
    }

    /// There is no counter any more.
    pub(super) fn end(&mut self) {
        (self.close, self.taken) = (0, GAPS.len());
    }

    /// A kill was found, by a look or because the shim announced it: the next need not be as close.
    pub(super) fn found(&mut self) {
        self.close = 0;
    }

    /// One was taken.
    pub(super) fn took(&mut self) {
        self.at = None;
        if self.close > 0 {
            self.close -= 1;
        } else {
            self.taken += 1;
        }
    }

    /// Until the next; none: no more are needed.
    pub(super) fn gap(&self) -> Option<Duration> {
        if self.close > 0 { Some(CLOSE) } else { GAPS.get(self.taken).copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(version: Version, found_at: Option<usize>) -> Vec<Duration> {
        let (mut looks, mut gaps) = (Looks::default(), Vec::new());
        looks.begin(version, found_at == Some(0));
        while let Some(gap) = looks.gap() {
            gaps.push(gap);
            if found_at == Some(gaps.len()) {
                looks.found();
            }
            looks.took();
        }
        gaps
    }

    #[test]
    fn looks_are_close_until_the_kill_is_found_and_end() {
        assert_eq!(gaps(Version::V2, None), GAPS);
        assert_eq!(gaps(Version::V2, Some(0)), GAPS);
        assert_eq!(gaps(Version::V1, Some(0)), GAPS);
        let v1 = gaps(Version::V1, None);
        assert_eq!((v1.len(), v1[0], v1[24], &v1[25..]), (31, CLOSE, CLOSE, &GAPS[..]));
        let found = gaps(Version::V1, Some(3));
        assert_eq!((&found[..3], &found[3..]), (&[CLOSE; 3][..], &GAPS[1..]));
    }

    #[test]
    fn without_a_counter_there_are_none() {
        let mut looks = Looks::default();
        looks.begin(Version::V1, false);
        looks.end();
        looks.took();
        assert_eq!(looks.gap(), None);
        looks.begin(Version::V1, false);
        assert_eq!(looks.gap(), Some(CLOSE));
    }
}
