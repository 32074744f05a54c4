//! A token bucket: a rate limit that allows bursts.

use std::time::Duration;

use tokio::time::Instant;

/// A rate limit: tokens accrue at a constant rate up to the burst size.
///
/// ```
/// use coroner_transport::TokenBucket;
/// use tokio::time::Instant;
///
/// let mut bucket = TokenBucket::new(10, 2);
/// let now = Instant::now();
/// assert!(bucket.take(2, now).is_ok());
/// assert!(bucket.take(1, now).is_err(), "the burst is used up");
/// ```
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    filled: f64,
    at: Instant,
}

impl TokenBucket {
    /// Creates a full bucket.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let (per_second, burst) = (f64::from(per_second), f64::from(burst));
        Self { per_second, burst, filled: burst, at: Instant::now() }
    }

    /// Takes `many` tokens. The error is the time until they are available.
    ///
    /// A request for more than the burst size is reduced to it: it would wait for ever.
    pub fn take(&mut self, many: u32, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.filled, self.at) = ((self.filled + since * self.per_second).min(self.burst), now);
        let many = f64::from(many).min(self.burst);
        if self.filled >= many {
            self.filled -= many;
            return Ok(());
        }
        Err(Duration::from_secs_f64((many - self.filled) / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_allows_burst_then_rate() {
        let mut bucket = TokenBucket::new(10, 5);
        let start = Instant::now();
        for _ in 0..5 {
            assert!(bucket.take(1, start).is_ok());
        }
        let wait = bucket.take(1, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(90), "{wait:?}");
        assert!(bucket.take(1, start + Duration::from_millis(101)).is_ok());
        assert!(bucket.take(1, start + Duration::from_millis(102)).is_err());
        assert!(
            bucket.take(100, start + Duration::from_secs(3600)).is_ok(),
            "a request is reduced to the burst"
        );
    }
}
