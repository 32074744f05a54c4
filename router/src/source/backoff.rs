//! How long a source waits before it dials again: shortly after a cut, longer after an answer that no agent gives.

use std::time::Duration;

use coroner_proto::bucket::Bucket;
use tokio::time::Instant;

use super::calls::LinkError;

/// Between two tries to reach the agent.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(2);
/// Links that came up and ended: sixty are dialled again at once, one every twenty seconds after that, and the others in the longest gap. A guest could otherwise have the router dial, greet and take
/// a snapshot twenty times a second for ever, by ending each link itself.
const CUTS: u32 = 60;
const CUT: u32 = 20;
/// After a malformed answer. A guest could otherwise have the router dial, greet and take a snapshot as fast as it can answer.
const FIRST_PENALTY: Duration = Duration::from_secs(1);
const LONGEST_PENALTY: Duration = Duration::from_secs(60);
/// A link that lasted as long clears what came before it.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// A peer that lacks the protocol is asked again after this long: it may have been replaced.
pub(super) const LACKING_GAP: Duration = Duration::from_secs(60);

/// The waits so far.
#[derive(Debug)]
pub(super) struct Backoff {
    tries: u32,
    penalties: u32,
    cuts: Bucket,
    up_since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { tries: 0, penalties: 0, cuts: Bucket::new(1, CUTS * CUT), up_since: None }
    }

    /// The link that has ended was up since then.
    pub(super) fn up(&mut self, since: Instant, now: Instant) {
        self.up_since = Some(since);
        // Sixteen times doubled is the longest gap.
        self.tries = if self.cuts.take(CUT, now).is_ok() { 0 } else { 16 };
    }

    /// The link ended, or did not come up.
    pub(super) fn after(&mut self, error: &LinkError, now: Instant) -> Duration {
        if self.up_since.take().is_some_and(|since| now - since >= GOOD_FOR) {
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
    fn a_link_that_is_cut_heals_at_once_and_one_that_is_cut_for_ever_does_not() {
        let mut backoff = Backoff::new();
        let cut = || LinkError::Connect(std::io::ErrorKind::ConnectionReset.into());
        let (mut now, mut links) = (Instant::now(), 0);
        let end = now + Duration::from_secs(600);
        while now < end {
            backoff.up(now, now);
            let wait = backoff.after(&cut(), now);
            (now, links) = (now + wait, links + 1);
            assert!(links > CUTS || wait <= FIRST_GAP, "{links}: {wait:?}");
        }
        assert!(links <= 60 + 600 + 10, "{links} links in ten minutes");
    }

    #[test]
    fn waits_grow_and_misconduct_is_not_cleared_by_a_short_link() {
        let mut backoff = Backoff::new();
        let cut = || LinkError::Connect(std::io::ErrorKind::ConnectionReset.into());
        let bad = || LinkError::Order { seq: 1, after: 2 };
        let now = Instant::now();
        let first = backoff.after(&cut(), now);
        assert!(first >= FIRST_GAP / 2 && first <= FIRST_GAP, "{first:?}");
        for _ in 0..40 {
            backoff.after(&cut(), now);
        }
        assert!(backoff.after(&cut(), now) <= LONGEST_GAP);
        backoff.up(now, now);
        assert!(backoff.after(&cut(), now) <= FIRST_GAP);
        for _ in 0..10 {
            backoff.up(now, now);
            backoff.after(&bad(), now);
        }
        assert!(backoff.after(&bad(), now) >= LONGEST_PENALTY / 2);
    }

    #[test]
    fn a_link_that_was_good_for_a_minute_clears_what_came_before() {
        let mut backoff = Backoff::new();
        let bad = || LinkError::Order { seq: 1, after: 2 };
        let now = Instant::now();
        for _ in 0..10 {
            backoff.after(&bad(), now);
        }
        let later = now + GOOD_FOR;
        backoff.up(now, later);
        assert!(backoff.after(&bad(), later) <= FIRST_PENALTY);
    }
}
