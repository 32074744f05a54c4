//! Quarantine: the circuit breaker of a policy. Opens after repeated faults, and closes after a
//! trial call. Belongs to the component's digest, whatever the policy's name.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff};

use super::report::PolicyState;
use super::settings::QuarantineSettings;
use coroner_core::ruling::FaultKind;

/// Window of the burnt time, in seconds.
const BURNT_WINDOW: u64 = 10;
/// Share of a call that counts as free: a busy node calls a policy ten thousand times a second, and
/// that is not a fault.
const FREE: Duration = Duration::from_millis(1);
/// Fuel that counts as a microsecond, on every machine: what a call costs does not depend on how
/// long the machine takes for it.
const FUEL_PER_MICRO: u64 = 1000;
/// After this time without a quarantine, the back-off starts again with the shortest one.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Closed: call it.
    Call,
    /// Half open: the quarantine ends if this call succeeds.
    Trial,
    /// Open: skip the call.
    Quarantined,
}

/// The result of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called {
    pub(super) admission: Admission,
    pub(super) fault: Option<FaultKind>,
    /// Processor time of its thread.
    pub(super) used: Duration,
    pub(super) fuel: u64,
}

/// The circuit breaker of one component.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    policy: String,
    limits: QuarantineSettings,
    begun: Instant,
    /// End of the quarantine in milliseconds since `begun`, plus one; 0: none. Read for every call.
    until: AtomicU64,
    /// The trial call is under way.
    trial: AtomicBool,
    /// A ring of seconds: burnt microseconds in the low half, the second's number in the high half.
    burnt: [AtomicU64; BURNT_WINDOW as usize],
    fault_state: Mutex<FaultState>,
}

/// State that changes with faults only.
#[derive(Debug, Default)]
struct FaultState {
    /// Times of the faults, oldest first.
    faults: Vec<Duration>,
    backoff: Option<ExponentialBackoff>,
    released: Duration,
}

impl CircuitBreaker {
    pub(super) fn new(policy: String, limits: QuarantineSettings) -> Self {
        Self {
            policy,
            limits,
            begun: Instant::now(),
            until: AtomicU64::new(0),
            trial: AtomicBool::new(false),
            burnt: std::array::from_fn(|_| AtomicU64::new(0)),
            fault_state: Mutex::default(),
        }
    }

    /// Whether a call may be made now. Only one caller at a time gets `Trial`, and it must report
    /// the result.
    pub(super) fn admit(&self) -> Admission {
        self.admit_at(self.begun.elapsed())
    }

    /// Reports the result of an admitted call.
    pub(super) fn called(&self, called: Called) {
        self.called_at(called, self.begun.elapsed());
    }

    /// Ends a quarantine. False: there was none.
    pub(super) fn release(&self) -> bool {
        let mut fault_state = self.fault_state();
        fault_state.faults.clear();
        self.clear_burnt();
        fault_state.released = self.begun.elapsed();
        self.trial.store(false, Ordering::Release);
        self.until.swap(0, Ordering::AcqRel) != 0
    }

    /// The state, and the time left in quarantine.
    pub(super) fn state(&self) -> (PolicyState, Option<Duration>) {
        match self.until.load(Ordering::Acquire) {
            0 => (PolicyState::Running, None),
            until => match Duration::from_millis(until - 1).checked_sub(self.begun.elapsed()) {
                Some(left) if !left.is_zero() => (PolicyState::Quarantined, Some(left)),
                _ => (PolicyState::Trial, None),
            },
        }
    }

    fn admit_at(&self, now: Duration) -> Admission {
        match self.until.load(Ordering::Acquire) {
            0 => Admission::Call,
            until if millis(now) + 1 < until => Admission::Quarantined,
            _ if self.trial.swap(true, Ordering::AcqRel) => Admission::Quarantined,
            _ => Admission::Trial,
        }
    }

    fn called_at(&self, called: Called, now: Duration) {
        if called.fault == Some(FaultKind::ChainFuel) {
            // The policies before it used the fuel: that proves nothing about this one. Its trial
            // is made again.
            if called.admission == Admission::Trial {
                self.trial.store(false, Ordering::Release);
            }
            return;
        }
        let burnt = burnt(called);
        let burnt_in_window = if burnt.is_zero() { Duration::ZERO } else { self.add_burnt(burnt, now) };
        // A timeout counts as burnt time only: one late call on a busy machine never causes a
        // quarantine.
        let fault = called.fault.filter(|kind| *kind != FaultKind::Time);
        if called.admission == Admission::Trial {
            match called.fault {
                Some(kind) => self.quarantine(now, &format!("its trial ended with {kind:?}")),
                None => self.lift(now),
            }
            return;
        }
        if self.until.load(Ordering::Acquire) != 0 {
            // A policy that is called in quarantine too: its trial decides.
            return;
        }
        if fault.is_some() {
            let mut fault_state = self.fault_state();
            fault_state.faults.retain(|at| now.saturating_sub(*at) < self.limits.window);
            fault_state.faults.push(now);
            let many = fault_state.faults.len();
            drop(fault_state);
            if many >= self.limits.faults as usize {
                self.quarantine(now, &format!("{many} faults within {:?}", self.limits.window));
                return;
            }
        }
        if burnt_in_window >= self.limits.burnt {
            self.quarantine(now, &format!("{burnt_in_window:?} burnt within {BURNT_WINDOW} s"));
        }
    }

    fn quarantine(&self, now: Duration, because: &str) {
        let mut fault_state = self.fault_state();
        if self.until.load(Ordering::Acquire) != 0 && !self.trial.load(Ordering::Acquire) {
            // Another worker's call was under way when the quarantine began.
            return;
        }
        if now.saturating_sub(fault_state.released) > FORGIVEN {
            fault_state.backoff = None;
        }
        let limits = self.limits;
        let backoff = fault_state.backoff.get_or_insert_with(|| {
            backon::ExponentialBuilder::default()
                .with_min_delay(limits.shortest)
                .with_max_delay(limits.longest)
                .without_max_times()
                .build()
        });
        // Jitter of a fifth: policies that failed together do not all return together.
        let time = backoff.next().unwrap_or(limits.longest).min(limits.longest);
        let time = time.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        fault_state.faults.clear();
        self.clear_burnt();
        self.until.store(millis(now + time) + 1, Ordering::Release);
        self.trial.store(false, Ordering::Release);
        tracing::warn!(policy = self.policy, because, time = ?time, "policy quarantined");
    }

    fn lift(&self, now: Duration) {
        self.fault_state().released = now;
        self.until.store(0, Ordering::Release);
        self.trial.store(false, Ordering::Release);
        tracing::info!(policy = self.policy, "quarantine lifted");
    }

    /// Adds to the current second and returns the sum of the window.
    fn add_burnt(&self, burnt: Duration, now: Duration) -> Duration {
        let second = now.as_secs() + 1;
        let micros = u64::try_from(burnt.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX >> 1));
        let add = |cell: u64| {
            let before = if cell >> 32 == second { cell & u64::from(u32::MAX) } else { 0 };
            Some(second << 32 | (before + micros).min(u64::from(u32::MAX)))
        };
        let cell = &self.burnt[usize::try_from(second % BURNT_WINDOW).expect("below ten")];
        cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).unwrap_or(0);
        let in_window = self.burnt.iter().map(|cell| cell.load(Ordering::Acquire));
        let in_window = in_window.filter(|cell| (cell >> 32) + BURNT_WINDOW > second);
        Duration::from_micros(in_window.map(|cell| cell & u64::from(u32::MAX)).sum())
    }

    fn clear_burnt(&self) {
        self.burnt.iter().for_each(|cell| cell.store(0, Ordering::Release));
    }

    fn fault_state(&self) -> std::sync::MutexGuard<'_, FaultState> {
        self.fault_state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time burnt by a call beyond the first millisecond, by its fuel. A call that ended by time has no
/// true fuel count: it burnt the processor time of its thread, however long that waited.
fn burnt(called: Called) -> Duration {
    let accounted = match called.fault {
        Some(FaultKind::Time) => called.used,
        _ => Duration::from_micros(called.fuel / FUEL_PER_MICRO),
    };
    accounted.saturating_sub(FREE)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Called =
        Called { admission: Admission::Call, fault: None, used: Duration::from_micros(5), fuel: 7000 };

    fn breaker() -> CircuitBreaker {
        CircuitBreaker::new("50-x".to_owned(), QuarantineSettings::default())
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn faulty(kind: FaultKind) -> Called {
        Called { fault: Some(kind), ..CALL }
    }

    /// Causes five faults at `now`.
    fn quarantine(breaker: &CircuitBreaker, now: f64) {
        (0..5).for_each(|_| breaker.called_at(faulty(FaultKind::Trap), at(now)));
    }

    #[test]
    fn faults_within_window_quarantine_and_one_less_does_not() {
        let breaker = breaker();
        for second in 0..4 {
            breaker.called_at(faulty(FaultKind::Trap), at(f64::from(second)));
        }
        assert_eq!(breaker.admit_at(at(4.0)), Admission::Call);
        breaker.called_at(faulty(FaultKind::Memory), at(61.5));
        assert_eq!(breaker.admit_at(at(61.5)), Admission::Call, "the first two no longer count");
        breaker.called_at(faulty(FaultKind::Answer), at(61.6));
        breaker.called_at(faulty(FaultKind::Answer), at(61.7));
        assert_eq!(breaker.admit_at(at(61.8)), Admission::Quarantined);
    }

    #[test]
    fn burnt_fuel_quarantines_and_starved_call_does_not() {
        let breaker = breaker();
        let starved = Called { fault: Some(FaultKind::Time), used: at(0.0009), fuel: 0, ..CALL };
        (0..1000).for_each(|_| breaker.called_at(starved, at(0.0)));
        let slow_machine = Called { used: at(0.9), fuel: 1_000_000, ..CALL };
        (0..10_000).for_each(|_| breaker.called_at(slow_machine, at(0.2)));
        assert_eq!(breaker.admit_at(at(0.3)), Admission::Call);
        let heavy = Called { fuel: 10_000_000, ..CALL };
        (0..50).for_each(|_| breaker.called_at(heavy, at(5.0)));
        (0..50).for_each(|_| breaker.called_at(heavy, at(16.0)));
        assert_eq!(breaker.admit_at(at(16.0)), Admission::Call, "what burnt eleven seconds ago is forgotten");
        (0..6).for_each(|_| breaker.called_at(heavy, at(17.0)));
        assert_eq!(breaker.admit_at(at(17.0)), Admission::Quarantined);
    }

    #[test]
    fn call_that_used_its_processor_time_up_quarantines() {
        let breaker = breaker();
        breaker.called_at(Called { fault: Some(FaultKind::Time), used: at(10.0), ..CALL }, at(0.0));
        assert_eq!(breaker.admit_at(at(0.1)), Admission::Quarantined);
    }

    #[test]
    fn fuel_used_up_by_others_is_not_a_fault() {
        let breaker = breaker();
        (0..100).for_each(|_| breaker.called_at(faulty(FaultKind::ChainFuel), at(0.0)));
        assert_eq!(breaker.admit_at(at(0.0)), Admission::Call);
        quarantine(&breaker, 0.0);
        assert_eq!(breaker.admit_at(at(1.2)), Admission::Trial);
        let trial = Called { admission: Admission::Trial, ..faulty(FaultKind::ChainFuel) };
        breaker.called_at(trial, at(1.2));
        assert_eq!(breaker.admit_at(at(1.2)), Admission::Trial, "the trial is made again");
    }

    #[test]
    fn trial_decides_and_quarantines_grow() {
        let breaker = breaker();
        quarantine(&breaker, 0.0);
        assert_eq!(breaker.admit_at(at(0.85)), Admission::Quarantined);
        assert_eq!(breaker.admit_at(at(1.15)), Admission::Trial);
        assert_eq!(breaker.admit_at(at(1.15)), Admission::Quarantined, "one trial at a time");
        let trial = Called { admission: Admission::Trial, ..CALL };
        breaker.called_at(Called { fault: Some(FaultKind::Fuel), ..trial }, at(1.2));
        assert_eq!(breaker.admit_at(at(2.9)), Admission::Quarantined, "twice as long");
        assert_eq!(breaker.admit_at(at(3.6)), Admission::Trial);
        breaker.called_at(trial, at(3.6));
        assert_eq!(breaker.admit_at(at(3.6)), Admission::Call);
        quarantine(&breaker, 5.0);
        assert_eq!(breaker.admit_at(at(8.4)), Admission::Quarantined, "four seconds, less a tenth");
        assert!(breaker.release());
        assert!(!breaker.release());
        assert_eq!(breaker.admit_at(at(8.4)), Admission::Call);
        quarantine(&breaker, 5000.0);
        assert_eq!(breaker.admit_at(at(5001.2)), Admission::Trial, "long healthy, it starts over");
    }

    #[test]
    fn calls_in_quarantine_change_nothing_until_the_trial() {
        let breaker = breaker();
        quarantine(&breaker, 0.0);
        (0..1000).for_each(|_| breaker.called_at(faulty(FaultKind::Trap), at(0.5)));
        assert!(breaker.fault_state().faults.is_empty(), "they would fill the memory");
        breaker.called_at(CALL, at(0.6));
        assert_eq!(breaker.admit_at(at(0.7)), Admission::Quarantined);
        assert_eq!(breaker.admit_at(at(1.2)), Admission::Trial);
    }

    #[test]
    fn quarantine_has_a_maximum() {
        let breaker = breaker();
        let mut now = 0.0;
        for _ in 0..12 {
            quarantine(&breaker, now);
            now += 600.0 - 1.0;
            breaker.called_at(Called { admission: breaker.admit_at(at(now)), ..CALL }, at(now));
        }
        quarantine(&breaker, now);
        assert_eq!(breaker.admit_at(at(now + 331.0)), Admission::Trial);
    }
}
