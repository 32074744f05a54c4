//! The time of a call: processor time of the thread that makes it, and elapsed time as the last
//! resort. A policy that waits for a processor of a busy node has done nothing wrong.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Elapsed time that ends a call whatever its limit of processor time: it detects hangs. Under a
/// CPU quota of 5 % a call still has 3 s of processor time. Without it a call could hold its
/// worker, and the exits behind it, for as long as its thread does not run.
const HUNG: Duration = Duration::from_secs(60);

/// The clock of one call, or of several by one thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallClock {
    /// Processor time of the thread at the start.
    started: Duration,
    limit: Duration,
    until: Instant,
}

impl CallClock {
    /// Starts it for the calling thread.
    pub(super) fn start(limit: Duration) -> Self {
        Self { started: thread_time(), limit, until: Instant::now() + limit.max(HUNG) }
    }

    /// Processor time left; zero if it or the elapsed time is over.
    pub(super) fn left(&self) -> Duration {
        self.left_at(Instant::now(), thread_time())
    }

    /// Processor time used so far.
    pub(super) fn used(&self) -> Duration {
        thread_time().saturating_sub(self.started)
    }

    fn left_at(&self, now: Instant, thread: Duration) -> Duration {
        match now < self.until {
            true => self.limit.saturating_sub(thread.saturating_sub(self.started)),
            false => Duration::ZERO,
        }
    }
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("it is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    #[test]
    fn waiting_costs_nothing_until_elapsed_time_is_over() {
        let (now, clock) = (Instant::now(), CallClock::start(LIMIT));
        let left = |elapsed: Duration, used: Duration| clock.left_at(now + elapsed, clock.started + used);
        let tick = Duration::from_millis(1);
        assert_eq!(left(tick, tick), LIMIT - tick);
        assert_eq!(left(LIMIT + tick, tick), LIMIT - tick, "elapsed time alone");
        assert_eq!(left(HUNG - tick, tick), LIMIT - tick);
        assert_eq!(left(LIMIT, LIMIT), Duration::ZERO);
        assert_eq!(left(clock.until - now, tick), Duration::ZERO);
    }

    #[test]
    fn computing_uses_the_limit_up() {
        let clock = CallClock::start(LIMIT);
        while clock.left() > Duration::ZERO {}
        assert!(thread_time() - clock.started >= LIMIT || Instant::now() >= clock.until);
    }
}
