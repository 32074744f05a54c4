//! A token bucket: how much may come at once, and how fast it may go on.

use std::time::Duration;

use tokio::time::Instant;

/// Fills up evenly to its burst; whoever finds too little in it knows how long to wait.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    filled: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let (per_second, burst) = (f64::from(per_second), f64::from(burst));
        Self { per_second, burst, filled: burst, at: Instant::now() }
    }

    /// Takes so many, or says after which time they will be there.
    pub fn take(&mut self, many: u32, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.filled, self.at) = ((self.filled + since * self.per_second).min(self.burst), now);
        // More than it can ever hold is taken from a full one: it would wait for ever.
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
    fn a_burst_is_let_through_and_then_the_rate() {
        let mut bucket = Bucket::new(10, 5);
        let start = Instant::now();
        for _ in 0..5 {
            assert!(bucket.take(1, start).is_ok());
        }
        let wait = bucket.take(1, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(90), "{wait:?}");
        assert!(bucket.take(1, start + Duration::from_millis(101)).is_ok());
        assert!(bucket.take(1, start + Duration::from_millis(102)).is_err());
        assert!(bucket.take(100, start + Duration::from_secs(3600)).is_ok(), "never more than it holds");
    }
}
