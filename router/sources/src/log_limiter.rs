//! Log rate limit of a guest's source. Without it a guest could fill the disk with the lines it
//! causes.

use coroner_transport::TokenBucket;
use tokio::time::Instant;

/// Burst of lines, after which one a minute is written. Counters still count what is not logged.
const LINES: u32 = 20;
const MINUTE: u32 = 60;

/// The log budget of one source.
#[derive(Debug)]
pub(super) struct LogLimiter {
    source: String,
    /// `None`: a trusted source, which has no limit.
    left: Option<TokenBucket>,
    silent: bool,
}

impl LogLimiter {
    pub(super) fn new(source: &str, is_guest: bool) -> Self {
        let left = is_guest.then(|| TokenBucket::new(1, LINES * MINUTE));
        Self { source: source.to_owned(), left, silent: false }
    }

    /// Whether one more line may be written. The first suppressed line is replaced by a warning.
    pub(super) fn allow(&mut self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> bool {
        let Some(left) = &mut self.left else { return true };
        let may = left.take(MINUTE, now).is_ok();
        if !may && !self.silent {
            let guest = &self.source;
            tracing::warn!(
                guest,
                "log rate limit reached: one line a minute from now on; `coroner guest list` has the counters"
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
    fn guest_lines_limited_to_burst_then_one_a_minute() {
        let start = Instant::now();
        let (mut guest, mut node) = (LogLimiter::new("g", true), LogLimiter::new("n", false));
        assert_eq!((0..1000).filter(|_| guest.allow_at(start)).count(), LINES as usize);
        assert_eq!((0..1000).filter(|_| node.allow_at(start)).count(), 1000);
        for minute in 1..4 {
            let now = start + minute * Duration::from_secs(61);
            assert_eq!((0..10).filter(|_| guest.allow_at(now)).count(), 1);
        }
    }
}
