//! Counters of each policy: for `coroner status`, the difference report and Prometheus.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::report::{CallTime, Difference, Example, LastFault};
use coroner_core::ruling::{Action, FailureHandled, Fault, FaultKind, Opinion, Ruling};
use coroner_core::signal::Signal;

/// Upper bounds of the call-time buckets, in microseconds: 5 us is a warm call.
pub(super) const BUCKETS: [u64; 12] = [2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20_000, 100_000];
/// Recent faults and examples kept: as many as fit on a screen.
const LAST: usize = 16;
/// Distinct rules in a difference report. Without a bound a policy that invents a rule name for
/// each signal would fill the memory.
const RULES: usize = 64;

/// The counters of one policy since its digest was loaded.
#[derive(Debug, Default)]
pub(super) struct PolicyCounts {
    calls: AtomicU64,
    decided: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
    last_faults: Mutex<VecDeque<LastFault>>,
    difference: Mutex<Difference>,
}

impl PolicyCounts {
    /// Counts a call that was made and answered.
    pub(super) fn call(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        let bucket = BUCKETS.iter().position(|bound| micros <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the opinion of a call.
    pub(super) fn opinion(&self, signal: &Signal, opinion: &Opinion) {
        if let Some(Ruling::Decide(_)) = opinion.ruling {
            self.decided.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(FailureHandled::Retried(first)) = &opinion.on_failure {
            self.fault(signal, first);
        }
        if let Some(fault) = &opinion.fault {
            self.fault(signal, fault);
        }
    }

    fn fault(&self, signal: &Signal, fault: &Fault) {
        self.faults[fault.kind.index()].fetch_add(1, Ordering::Relaxed);
        if fault.kind == FaultKind::Quarantined {
            return;
        }
        let mut last = self.last_faults.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST {
            last.pop_front();
        }
        last.push_back(LastFault {
            at_ms: unix_ms(),
            kind: fault.kind,
            message: fault.message.clone(),
            container: signal.target.container_id.to_string(),
        });
    }

    /// Counts a shadow policy's effect on the draft.
    pub(super) fn shadow(&self, signal: &Signal, opinion: &Opinion, enforced: &[Action], would: &[Action]) {
        let differs = u64::from(enforced != would);
        let mut report = self.difference.lock().unwrap_or_else(PoisonError::into_inner);
        report.signals += 1;
        report.faults += u64::from(opinion.fault.is_some());
        let Some(Ruling::Decide(decision)) = &opinion.ruling else { return };
        report.decided += 1;
        report.differs += differs;
        let rule = decision.rule.clone().unwrap_or_default();
        if report.rules.len() < RULES || report.rules.contains_key(&rule) {
            let of_rule = report.rules.entry(rule).or_default();
            of_rule.decided += 1;
            of_rule.differs += differs;
        }
        if differs == 0 {
            return;
        }
        if report.examples.len() == LAST {
            report.examples.remove(0);
        }
        let owner = signal.target.owner.as_ref();
        report.examples.push(Example {
            id: signal.id.clone(),
            container: signal.target.container_id.to_string(),
            pod: owner.and_then(|it| Some(format!("{}/{}", it.namespace.as_ref()?, it.pod.as_ref()?))),
            enforced: enforced.to_vec(),
            would: would.to_vec(),
            because: decision.because.clone(),
        });
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn decided(&self) -> u64 {
        self.decided.load(Ordering::Relaxed)
    }

    /// Faults by kind; kinds without a fault are left out.
    pub(super) fn faults(&self) -> BTreeMap<FaultKind, u64> {
        let counts = FaultKind::ALL.iter().zip(&self.faults);
        let counts = counts.map(|(kind, count)| (*kind, count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn last_faults(&self) -> Vec<LastFault> {
        self.last_faults.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn difference(&self) -> Difference {
        self.difference.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sum of all calls in microseconds, and calls by bucket.
    pub(super) fn times(&self) -> (u64, Vec<u64>) {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        (self.micros.load(Ordering::Relaxed), buckets)
    }

    /// `None` before the first call.
    pub(super) fn call_time(&self) -> Option<CallTime> {
        let (_, buckets) = self.times();
        let all: u64 = buckets.iter().sum();
        let below = |share: u64| {
            let mut seen = 0;
            let at = buckets.iter().position(|count| {
                seen += count;
                seen * 100 >= all * share
            });
            BUCKETS.get(at.unwrap_or(BUCKETS.len())).copied()
        };
        (all > 0).then(|| CallTime { p50: below(50), p99: below(99) })
    }
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_times_are_upper_bounds_of_their_buckets() {
        let counts = PolicyCounts::default();
        assert_eq!(counts.call_time(), None);
        for micros in [4, 4, 5, 60, 15_000] {
            counts.call(Duration::from_micros(micros));
        }
        assert_eq!(counts.call_time(), Some(CallTime { p50: Some(5), p99: Some(20_000) }));
        counts.call(Duration::from_secs(1));
        assert_eq!(counts.call_time(), Some(CallTime { p50: Some(5), p99: None }));
    }
}
