//! How long a source waits before it dials again: shortly after a cut, longer after an answer that no agent gives.

use std::time::{Duration, Instant};

use super::calls::LinkError;

/// Between two tries to reach the agent.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(2);
/// After a malformed answer. A guest could otherwise have the router dial, greet and take a snapshot as fast as it can answer.
const FIRST_PENALTY: Duration = Duration::from_secs(1);
const LONGEST_PENALTY: Duration = Duration::from_secs(60);
/// A link that lasted as long clears what came before it.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// A peer that lacks the protocol is asked again after this long: it may have been replaced.
pub(super) const LACKING_GAP: Duration = Duration::from_secs(60);

/// The waits so far.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    penalties: u32,
    up_since: Option<Instant>,
}

impl Backoff {
    /// The link came up.
    pub(super) fn up(&mut self) {
        (self.tries, self.up_since) = (0, Some(Instant::now()));
    }

    /// The link ended, or did not come up.
    pub(super) fn after(&mut self, error: &LinkError) -> Duration {
        if self.up_since.take().is_some_and(|since| since.elapsed() >= GOOD_FOR) {
            self.penalties = 0;
        }
        if matches!(error, LinkError::Lacks { .. }) {
            return LACKING_GAP;
        }
        let (count, first, longest) = if error.is_misconduct() {
            (&mut self.penalties, FIRST_PENALTY, LONGEST_PENALTY)
        } else {
            (&mut self.tries, FIRST_GAP, LONGEST_GAP)
        };
        let wait = first.saturating_mul(1 << (*count).min(16)).min(longest);
        *count += 1;
        // Half of it by chance, so that a thousand guests of one node do not dial as one.
        wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_misconduct_is_not_cleared_by_a_short_link() {
        let mut backoff = Backoff::default();
        let cut = || LinkError::Connect(std::io::ErrorKind::ConnectionReset.into());
        let bad = || LinkError::Order { seq: 1, after: 2 };
        let first = backoff.after(&cut());
        assert!(first >= FIRST_GAP / 2 && first <= FIRST_GAP, "{first:?}");
        for _ in 0..40 {
            backoff.after(&cut());
        }
        assert!(backoff.after(&cut()) <= LONGEST_GAP);
        backoff.up();
        assert!(backoff.after(&cut()) <= FIRST_GAP);
        for _ in 0..10 {
            backoff.up();
            backoff.after(&bad());
        }
        assert!(backoff.after(&bad()) >= LONGEST_PENALTY / 2);
    }
}
