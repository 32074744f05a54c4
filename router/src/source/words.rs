//! How often a source may have the router write to its log: a guest could otherwise fill the disk by what it has the router say of it.

use coroner_proto::bucket::Bucket;
use tokio::time::Instant;

/// Lines at once, after which one a minute may be written. What is not written is counted, as ever.
const LINES: u32 = 20;
const MINUTE: u32 = 60;

/// What may still be said of one source.
#[derive(Debug)]
pub(super) struct Words {
    source: String,
    /// `None`: a source of the node, of which everything is said.
    left: Option<Bucket>,
    silent: bool,
}

impl Words {
    pub(super) fn of(source: &str, is_guest: bool) -> Self {
        let left = is_guest.then(|| Bucket::new(1, LINES * MINUTE));
        Self { source: source.to_owned(), left, silent: false }
    }

    /// Whether one more line may be written. The first that may not be says so.
    pub(super) fn may(&mut self) -> bool {
        self.may_at(Instant::now())
    }

    fn may_at(&mut self, now: Instant) -> bool {
        let Some(left) = &mut self.left else { return true };
        let may = left.take(MINUTE, now).is_ok();
        if !may && !self.silent {
            let guest = &self.source;
            tracing::warn!(
                guest,
                "it makes too many words; one line a minute from now on, `coroner guest list` counts"
            );
        }
        self.silent = !may;
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_guest_is_spoken_of_a_few_times_at_once_and_then_once_a_minute() {
        let start = Instant::now();
        let (mut guest, mut node) = (Words::of("g", true), Words::of("n", false));
        assert_eq!((0..1000).filter(|_| guest.may_at(start)).count(), LINES as usize);
        assert_eq!((0..1000).filter(|_| node.may_at(start)).count(), 1000);
        for minute in 1..4 {
            let now = start + minute * Duration::from_secs(61);
            assert_eq!((0..10).filter(|_| guest.may_at(now)).count(), 1);
        }
    }
}
