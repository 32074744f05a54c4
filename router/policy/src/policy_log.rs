//! A policy's log output: goes to the router's log under the policy's name, with limits of rate,
//! size and number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::limits::{LOG_LINE, OUTPUT};

/// Burst of the rate limit, in seconds of lines.
const BURST: u32 = 5;
/// Lines of one call. Fuel does not count the host's work: without this limit a policy that only
/// logs would hold its worker until its time is over.
const LINES: u32 = 1000;

/// The severity of a log line, in every version of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// Too much output in one call.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    #[error("more than {LINES} log lines in one call")]
    Lines,
    #[error("more than {OUTPUT} bytes of log output in one call")]
    Bytes,
}

/// The log of one policy, shared by all workers.
#[derive(Debug)]
pub(super) struct PolicyLog {
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

impl PolicyLog {
    /// A log of `policy`, limited to `rate` lines a second.
    pub(super) fn new(policy: String, rate: u32) -> Self {
        let rate = rate.max(1);
        let bucket = Bucket { left: rate.saturating_mul(BURST), filled: Instant::now(), dropped: 0 };
        Self { policy, gap: Duration::from_secs(1) / rate, bucket: Mutex::new(bucket) }
    }

    fn emit(&self, severity: LogLevel, text: &str) {
        let Some(dropped) = self.take(Instant::now()) else { return };
        let policy = self.policy.as_str();
        if dropped > 0 {
            tracing::warn!(policy, dropped, "log rate limit reached: lines of the policy dropped");
        }
        match severity {
            LogLevel::Error => tracing::error!(policy, text, "policy log"),
            LogLevel::Warn => tracing::warn!(policy, text, "policy log"),
            LogLevel::Info => tracing::info!(policy, text, "policy log"),
            LogLevel::Debug => tracing::debug!(policy, text, "policy log"),
        }
    }

    /// Lines dropped since the last line that was written; `None`: this one is dropped too.
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

/// The log of one instance, call by call.
#[derive(Debug)]
pub(super) struct CallLog {
    policy_log: std::sync::Arc<PolicyLog>,
    written: u32,
    bytes: usize,
    /// The last line of severity error: the text of a policy's panic, which it logs before it
    /// traps.
    pub(super) last_error: Option<String>,
}

impl CallLog {
    pub(super) fn new(policy_log: std::sync::Arc<PolicyLog>) -> Self {
        Self { policy_log, written: 0, bytes: 0, last_error: None }
    }

    /// Begins a call.
    pub(super) fn begin(&mut self) {
        self.written = 0;
        self.bytes = 0;
        self.last_error = None;
    }

    /// Counts output of the call, whether or not it becomes a line.
    pub(super) fn count(&mut self, bytes: usize) -> Result<(), Flood> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > OUTPUT { Err(Flood::Bytes) } else { Ok(()) }
    }

    /// Writes one line.
    pub(super) fn write(&mut self, severity: LogLevel, text: &str) -> Result<(), Flood> {
        self.written += 1;
        if self.written > LINES {
            return Err(Flood::Lines);
        }
        let text = shortened(text);
        self.policy_log.emit(severity, &text);
        if severity == LogLevel::Error {
            self.last_error = Some(text);
        }
        Ok(())
    }
}

/// Cuts a policy's text to the length that an audit record or a log line may have.
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
    fn log_flood_limited_to_rate_and_drops_counted() {
        let policy_log = PolicyLog::new("50-x".to_owned(), 20);
        let start = policy_log.bucket.lock().unwrap().filled;
        let burst = (0..1000).filter(|_| policy_log.take(start).is_some()).count();
        assert_eq!(burst, 100);
        assert_eq!(policy_log.take(start + Duration::from_millis(49)), None);
        assert_eq!(policy_log.take(start + Duration::from_millis(50)), Some(901));
        assert_eq!(policy_log.take(start + Duration::from_millis(50)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| policy_log.take(later).is_some()).count(), 100);
    }

    #[test]
    fn output_of_a_call_is_bounded_in_lines_and_bytes() {
        let mut log = CallLog::new(std::sync::Arc::new(PolicyLog::new("50-x".to_owned(), 20)));
        log.begin();
        assert_eq!((log.count(OUTPUT), log.count(1)), (Ok(()), Err(Flood::Bytes)));
        log.begin();
        assert_eq!(log.count(1), Ok(()), "the next call begins anew");
        (0..LINES).for_each(|_| log.write(LogLevel::Debug, "x").unwrap());
        assert_eq!(log.write(LogLevel::Debug, "x"), Err(Flood::Lines));
    }

    #[test]
    fn log_line_cut_between_characters() {
        let text = "ä".repeat(LOG_LINE);
        assert_eq!(shortened(&text).len(), LOG_LINE);
        assert_eq!(shortened(&format!("x{text}")).len(), LOG_LINE - 1);
    }
}
