//! What many measured times come to.

use std::fmt;
use std::time::Duration;

/// Measured times of one kind; written `n 100: p50 1.3 ms, p95 3.4 ms, p99 5.0 ms, longest 6.1 ms`.
#[derive(Debug, Clone, Default)]
pub struct Times {
    sorted: Vec<Duration>,
}

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        let at = self.sorted.partition_point(|it| *it <= time);
        self.sorted.insert(at, time);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The shortest of them that `percent` of them do not exceed; 100 is the longest, 50 the
    /// median.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.sorted.len() * percent.min(100)).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied()
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut sorted: Vec<_> = times.into_iter().collect();
        sorted.sort();
        Self { sorted }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "n {}", self.count())?;
        let rows = [("p50", 50), ("p95", 95), ("p99", 99), ("longest", 100)];
        for (at, (name, percent)) in rows.into_iter().enumerate() {
            let Some(time) = self.percentile(percent) else { break };
            let before = if at == 0 { ":" } else { "," };
            write!(out, "{before} {name} {:.1} ms", time.as_secs_f64() * 1000.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Times = (1..=20).rev().map(Duration::from_millis).collect();
        for (percent, expected) in [(0, 1), (5, 1), (50, 10), (51, 11), (95, 19), (99, 20), (100, 20)] {
            assert_eq!(times.percentile(percent), Some(Duration::from_millis(expected)), "{percent}");
        }
        assert_eq!(times.to_string(), "n 20: p50 10.0 ms, p95 19.0 ms, p99 20.0 ms, longest 20.0 ms");
    }

    #[test]
    fn percentile_of_no_times_is_none() {
        let mut times = Times::default();
        assert_eq!((times.percentile(50), times.to_string().as_str()), (None, "n 0"));
        times.add(Duration::from_millis(7));
        assert_eq!(times.percentile(1), times.percentile(100));
    }
}
