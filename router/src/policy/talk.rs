//! What a policy says: to the router's log under its name, limited in rate, size and number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bindings::log::Severity;
use super::limits::LOG_LINE;

/// Seconds whose lines may come at once.
const BURST: u32 = 5;
/// Lines of one call. Fuel counts no work of the host's: a policy that only logs would else hold its worker for the
/// whole time of a call.
const LINES: u32 = 1000;

/// Too many lines in one call.
#[derive(Debug, thiserror::Error)]
#[error("more than {LINES} log lines in one call")]
pub(super) struct Flood;

/// The lines one policy may write, all workers together.
#[derive(Debug)]
pub(super) struct Talk {
    policy: String,
    gap: Duration,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
    dropped: u64,
}

impl Talk {
    /// Lines for `policy`, `rate` a second.
    pub(super) fn new(policy: String, rate: u32) -> Self {
        let rate = rate.max(1);
        let bucket = Bucket { left: rate.saturating_mul(BURST), filled: Instant::now(), dropped: 0 };
        Self { policy, gap: Duration::from_secs(1) / rate, bucket: Mutex::new(bucket) }
    }

    fn say(&self, severity: Severity, text: &str) {
        let Some(dropped) = self.take(Instant::now()) else { return };
        let policy = self.policy.as_str();
        if dropped > 0 {
            tracing::warn!(policy, dropped, "the policy says too much; lines dropped");
        }
        match severity {
            Severity::Error => tracing::error!(policy, text, "policy says"),
            Severity::Warn => tracing::warn!(policy, text, "policy says"),
            Severity::Info => tracing::info!(policy, text, "policy says"),
            Severity::Debug => tracing::debug!(policy, text, "policy says"),
        }
    }

    /// Lines dropped since the last that was taken; `None`: this one is dropped too.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = now.saturating_duration_since(bucket.filled).as_nanos() / self.gap.as_nanos().max(1);
        let gaps = u32::try_from(gaps).unwrap_or(u32::MAX);
        let most = (Duration::from_secs(u64::from(BURST)).as_nanos() / self.gap.as_nanos().max(1)) as u64;
        if gaps > 0 {
            bucket.left = u32::try_from(most).unwrap_or(u32::MAX).min(bucket.left.saturating_add(gaps));
            bucket.filled = now;
        }
        if bucket.left == 0 {
            bucket.dropped += 1;
            return None;
        }
        bucket.left -= 1;
        Some(std::mem::take(&mut bucket.dropped))
    }
}

/// The lines of one instance, call by call.
#[derive(Debug)]
pub(super) struct Lines {
    talk: std::sync::Arc<Talk>,
    written: u32,
    /// The last line that was an error: a policy's panic is told that way before it traps.
    pub(super) last_error: Option<String>,
}

impl Lines {
    pub(super) fn new(talk: std::sync::Arc<Talk>) -> Self {
        Self { talk, written: 0, last_error: None }
    }

    /// A new call begins.
    pub(super) fn begin(&mut self) {
        self.written = 0;
        self.last_error = None;
    }

    /// Writes one line.
    pub(super) fn write(&mut self, severity: Severity, text: &str) -> Result<(), Flood> {
        self.written += 1;
        if self.written > LINES {
            return Err(Flood);
        }
        let text = shortened(text);
        self.talk.say(severity, &text);
        if severity == Severity::Error {
            self.last_error = Some(text);
        }
        Ok(())
    }
}

/// The most of a policy's text that an audit record or a log line holds.
pub(super) fn shortened(text: &str) -> String {
    let mut end = text.len().min(LOG_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate_and_what_was_dropped_is_told() {
        let talk = Talk::new("50-x".to_owned(), 20);
        let start = talk.bucket.lock().unwrap().filled;
        let burst = (0..1000).filter(|_| talk.take(start).is_some()).count();
        assert_eq!(burst, 100);
        assert_eq!(talk.take(start + Duration::from_millis(49)), None);
        assert_eq!(talk.take(start + Duration::from_millis(50)), Some(901));
        assert_eq!(talk.take(start + Duration::from_millis(50)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| talk.take(later).is_some()).count(), 100);
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        let text = "ä".repeat(LOG_LINE);
        assert_eq!(shortened(&text).len(), LOG_LINE);
        assert_eq!(shortened(&format!("x{text}")).len(), LOG_LINE - 1);
    }
}
