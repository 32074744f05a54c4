//! Back-off between two connection attempts: short after a lost link, longer after a protocol
//! violation.

use std::time::Duration;

use coroner_transport::TokenBucket;
use tokio::time::Instant;

use super::agent_client::rpc::LinkError;

/// Delay between two connection attempts.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// Budget for links that came up and ended: sixty are redialled at once, then one every twenty
/// seconds; the others wait for the longest delay. Without it a guest that ends each link itself
/// could have the router dial, greet and take a snapshot twenty times a second for ever.
const CUTS: u32 = 60;
const CUT: u32 = 20;
/// Penalty after a malformed answer. Without it a guest could have the router dial, greet and take
/// a snapshot as fast as the guest can answer.
const FIRST_PENALTY: Duration = Duration::from_secs(1);
const LONGEST_PENALTY: Duration = Duration::from_secs(60);
/// A link that lasted this long clears earlier penalties.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Delay before a peer that lacks the protocol is dialled again: it may have been replaced.
pub(super) const LACKING_DELAY: Duration = Duration::from_secs(60);

/// The attempts and penalties so far.
#[derive(Debug)]
pub(super) struct Backoff {
    tries: u32,
    penalties: u32,
    cuts: TokenBucket,
    up_since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { tries: 0, penalties: 0, cuts: TokenBucket::new(1, CUTS * CUT), up_since: None }
    }

    /// Notes that the link that has ended was up since `since`.
    pub(super) fn up(&mut self, since: Instant, now: Instant) {
        self.up_since = Some(since);
        // Sixteen doublings reach the longest delay.
        self.tries = if self.cuts.take(CUT, now).is_ok() { 0 } else { 16 };
    }

    /// The delay after a link that ended or did not come up.
    pub(super) fn after(&mut self, error: &LinkError, now: Instant) -> Duration {
        if self.up_since.take().is_some_and(|since| now - since >= GOOD_FOR) {
            self.penalties = 0;
        }
        if matches!(error, LinkError::Lacks { .. }) {
            return LACKING_DELAY;
        }
        let (count, first, longest) = if error.is_misconduct() {
            (&mut self.penalties, FIRST_PENALTY, LONGEST_PENALTY)
        } else {
            (&mut self.tries, FIRST_DELAY, LONGEST_DELAY)
        };
        let wait = first.saturating_mul(1 << (*count).min(16)).min(longest);
        *count += 1;
        // Half of the delay is jitter, so that a thousand guests of one node do not dial at the
        // same moment.
        wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_cut_redialled_at_once_until_budget_spent() {
        let mut backoff = Backoff::new();
        let cut = || LinkError::Connect(std::io::ErrorKind::ConnectionReset.into());
        let (mut now, mut links) = (Instant::now(), 0);
        let end = now + Duration::from_secs(600);
        while now < end {
            backoff.up(now, now);
            let wait = backoff.after(&cut(), now);
            (now, links) = (now + wait, links + 1);
            assert!(links > CUTS || wait <= FIRST_DELAY, "{links}: {wait:?}");
        }
        assert!(links <= 60 + 600 + 10, "{links} links in ten minutes");
    }

    #[test]
    fn delay_grows_and_short_link_keeps_penalty() {
        let mut backoff = Backoff::new();
        let cut = || LinkError::Connect(std::io::ErrorKind::ConnectionReset.into());
        let bad = || LinkError::Order { seq: 1, after: 2 };
        let now = Instant::now();
        let first = backoff.after(&cut(), now);
        assert!(first >= FIRST_DELAY / 2 && first <= FIRST_DELAY, "{first:?}");
        for _ in 0..40 {
            backoff.after(&cut(), now);
        }
        assert!(backoff.after(&cut(), now) <= LONGEST_DELAY);
        backoff.up(now, now);
        assert!(backoff.after(&cut(), now) <= FIRST_DELAY);
        for _ in 0..10 {
            backoff.up(now, now);
            backoff.after(&bad(), now);
        }
        assert!(backoff.after(&bad(), now) >= LONGEST_PENALTY / 2);
    }

    #[test]
    fn link_up_for_a_minute_clears_penalty() {
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
