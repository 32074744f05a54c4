//! When a policy is put aside, for how long, and how it comes back: by its digest, whatever it is named.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff};

use super::report::State;
use super::settings::Quarantine;
use crate::ruling::FaultKind;

/// Over which burnt time is added up.
const BURNT_WINDOW: u64 = 10;
/// What a call may take without burning anything: a busy node calls a policy ten thousand times a second, and that is no fault.
const FREE: Duration = Duration::from_millis(1);
/// Fuel in a microsecond on a slow machine. A thread that is not scheduled burns time and no fuel: what fuel does not account for is
/// not the policy's.
const SLOWEST: u64 = 100;
/// Healthy for this long, a policy starts over with the shortest quarantine.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// As any.
    Call,
    /// The quarantine is over if this one goes well.
    Trial,
    /// Not now.
    Quarantined,
}

/// What became of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called {
    pub(super) admission: Admission,
    pub(super) fault: Option<FaultKind>,
    pub(super) took: Duration,
    /// What it may take.
    pub(super) limit: Duration,
    pub(super) fuel: u64,
}

/// The health of one component.
#[derive(Debug)]
pub(super) struct Health {
    policy: String,
    limits: Quarantine,
    begun: Instant,
    /// Milliseconds since `begun`, plus one, at which the quarantine ends; 0: there is none. Read for every call.
    until: AtomicU64,
    /// Somebody makes the call that decides.
    trial: AtomicBool,
    /// Burnt microseconds in the low half, the second they were burnt in in the high half.
    burnt: [AtomicU64; BURNT_WINDOW as usize],
    slow: Mutex<Slow>,
}

/// What changes with faults only.
#[derive(Debug, Default)]
struct Slow {
    /// When, the oldest first.
    faults: Vec<Duration>,
    backoff: Option<ExponentialBackoff>,
    released: Duration,
}

impl Health {
    pub(super) fn new(policy: String, limits: Quarantine) -> Self {
        Self {
            policy,
            limits,
            begun: Instant::now(),
            until: AtomicU64::new(0),
            trial: AtomicBool::new(false),
            burnt: std::array::from_fn(|_| AtomicU64::new(0)),
            slow: Mutex::default(),
        }
    }

    /// Whether a call may be made now. `Trial` is given to one caller at a time, who must say what became of it.
    pub(super) fn admit(&self) -> Admission {
        self.admit_at(self.begun.elapsed())
    }

    /// What became of a call that was admitted.
    pub(super) fn called(&self, called: Called) {
        self.called_at(called, self.begun.elapsed());
    }

    /// Ends a quarantine; false: there was none.
    pub(super) fn release(&self) -> bool {
        let mut slow = self.slow();
        slow.faults.clear();
        self.unburn();
        slow.released = self.begun.elapsed();
        self.trial.store(false, Ordering::Release);
        self.until.swap(0, Ordering::AcqRel) != 0
    }

    /// For people: the state, and how long it still lasts.
    pub(super) fn state(&self) -> (State, Option<Duration>) {
        match self.until.load(Ordering::Acquire) {
            0 => (State::Running, None),
            until => match Duration::from_millis(until - 1).checked_sub(self.begun.elapsed()) {
                Some(left) if !left.is_zero() => (State::Quarantined, Some(left)),
                _ => (State::Trial, None),
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
        let burnt = burnt(called);
        let burnt_lately = if burnt.is_zero() { Duration::ZERO } else { self.burn(burnt, now) };
        // Time alone is counted as burnt time: one late call, on a machine that was busy elsewhere, never ejects.
        let fault = called.fault.filter(|kind| *kind != FaultKind::Time);
        if called.admission == Admission::Trial {
            match called.fault {
                Some(kind) => self.eject(now, &format!("its trial ended with {kind:?}")),
                None => self.back(now),
            }
            return;
        }
        if fault.is_some() {
            let mut slow = self.slow();
            slow.faults.retain(|at| now.saturating_sub(*at) < self.limits.window);
            slow.faults.push(now);
            let many = slow.faults.len();
            drop(slow);
            if many >= self.limits.faults as usize {
                self.eject(now, &format!("{many} faults within {:?}", self.limits.window));
                return;
            }
        }
        if burnt_lately >= self.limits.burnt {
            self.eject(now, &format!("{burnt_lately:?} burnt within {BURNT_WINDOW} s"));
        }
    }

    fn eject(&self, now: Duration, because: &str) {
        let mut slow = self.slow();
        if self.until.load(Ordering::Acquire) != 0 && !self.trial.load(Ordering::Acquire) {
            // Another worker's call was under way when this policy was put aside.
            return;
        }
        if now.saturating_sub(slow.released) > FORGIVEN {
            slow.backoff = None;
        }
        let limits = self.limits;
        let backoff = slow.backoff.get_or_insert_with(|| {
            backon::ExponentialBuilder::default()
                .with_min_delay(limits.shortest)
                .with_max_delay(limits.longest)
                .without_max_times()
                .build()
        });
        // Of a fifth: policies that fell ill together do not all come back together.
        let time = backoff.next().unwrap_or(limits.longest).min(limits.longest);
        let time = time.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        slow.faults.clear();
        self.unburn();
        self.until.store(millis(now + time) + 1, Ordering::Release);
        self.trial.store(false, Ordering::Release);
        tracing::warn!(policy = self.policy, because, time = ?time, "policy quarantined: its rulings do not count until then");
    }

    fn back(&self, now: Duration) {
        self.slow().released = now;
        self.until.store(0, Ordering::Release);
        self.trial.store(false, Ordering::Release);
        tracing::info!(policy = self.policy, "policy rules again: its quarantine is over");
    }

    /// Adds to what this second burnt, and gives what the last ten did.
    fn burn(&self, burnt: Duration, now: Duration) -> Duration {
        let second = now.as_secs() + 1;
        let micros = u64::try_from(burnt.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX >> 1));
        let add = |cell: u64| {
            let before = if cell >> 32 == second { cell & u64::from(u32::MAX) } else { 0 };
            Some(second << 32 | (before + micros).min(u64::from(u32::MAX)))
        };
        let cell = &self.burnt[usize::try_from(second % BURNT_WINDOW).expect("below ten")];
        cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).unwrap_or(0);
        let lately = self.burnt.iter().map(|cell| cell.load(Ordering::Acquire));
        let lately = lately.filter(|cell| (cell >> 32) + BURNT_WINDOW > second);
        Duration::from_micros(lately.map(|cell| cell & u64::from(u32::MAX)).sum())
    }

    fn unburn(&self) {
        self.burnt.iter().for_each(|cell| cell.store(0, Ordering::Release));
    }

    fn slow(&self) -> std::sync::MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call burnt: what it took beyond the first millisecond, as far as its fuel accounts for that. A call that was ended for its time
/// leaves no true count of its fuel: it burnt all it may take, and no more, however long its thread was kept waiting.
fn burnt(called: Called) -> Duration {
    let accounted = match called.fault {
        Some(FaultKind::Time) => called.limit,
        _ => Duration::from_micros(called.fuel / SLOWEST),
    };
    called.took.min(accounted).saturating_sub(FREE)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Called = Called {
        admission: Admission::Call,
        fault: None,
        took: Duration::from_micros(5),
        limit: Duration::from_millis(20),
        fuel: 7000,
    };

    fn health() -> Health {
        Health::new("50-x".to_owned(), Quarantine::default())
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn faulty(kind: FaultKind) -> Called {
        Called { fault: Some(kind), ..CALL }
    }

    /// Five faults at `now`.
    fn eject(health: &Health, now: f64) {
        (0..5).for_each(|_| health.called_at(faulty(FaultKind::Trap), at(now)));
    }

    #[test]
    fn faults_within_the_window_eject_and_one_less_does_not() {
        let health = health();
        for second in 0..4 {
            health.called_at(faulty(FaultKind::Trap), at(f64::from(second)));
        }
        assert_eq!(health.admit_at(at(4.0)), Admission::Call);
        health.called_at(faulty(FaultKind::Memory), at(61.5));
        assert_eq!(health.admit_at(at(61.5)), Admission::Call, "the first two no longer count");
        health.called_at(faulty(FaultKind::Answer), at(61.6));
        health.called_at(faulty(FaultKind::Answer), at(61.7));
        assert_eq!(health.admit_at(at(61.8)), Admission::Quarantined);
    }

    #[test]
    fn a_late_call_never_ejects_and_burnt_time_does() {
        let health = health();
        let late = Called { fault: Some(FaultKind::Time), took: at(0.025), fuel: 9_000_000, ..CALL };
        health.called_at(late, at(0.0));
        let hung = Called { fault: Some(FaultKind::Time), took: at(60.0), fuel: 0, ..CALL };
        health.called_at(hung, at(0.0));
        let starved = Called { took: at(60.0), fuel: 7000, ..CALL };
        (0..1000).for_each(|_| health.called_at(starved, at(0.1)));
        let busy = Called { took: at(0.0009), fuel: 900_000, ..CALL };
        (0..10_000).for_each(|_| health.called_at(busy, at(0.2)));
        assert_eq!(health.admit_at(at(0.3)), Admission::Call);
        (0..10).for_each(|_| health.called_at(late, at(5.0)));
        (0..10).for_each(|_| health.called_at(late, at(16.0)));
        assert_eq!(health.admit_at(at(16.0)), Admission::Call, "what burnt eleven seconds ago is forgotten");
        (0..17).for_each(|_| health.called_at(late, at(17.0)));
        assert_eq!(health.admit_at(at(17.0)), Admission::Quarantined);
    }

    #[test]
    fn one_trial_decides_and_quarantines_grow() {
        let health = health();
        eject(&health, 0.0);
        assert_eq!(health.admit_at(at(0.85)), Admission::Quarantined);
        assert_eq!(health.admit_at(at(1.15)), Admission::Trial);
        assert_eq!(health.admit_at(at(1.15)), Admission::Quarantined, "one trial at a time");
        let trial = Called { admission: Admission::Trial, ..CALL };
        health.called_at(Called { fault: Some(FaultKind::Fuel), ..trial }, at(1.2));
        assert_eq!(health.admit_at(at(2.9)), Admission::Quarantined, "twice as long");
        assert_eq!(health.admit_at(at(3.6)), Admission::Trial);
        health.called_at(trial, at(3.6));
        assert_eq!(health.admit_at(at(3.6)), Admission::Call);
        eject(&health, 5.0);
        assert_eq!(health.admit_at(at(8.4)), Admission::Quarantined, "four seconds, less a tenth");
        assert!(health.release());
        assert!(!health.release());
        assert_eq!(health.admit_at(at(8.4)), Admission::Call);
        eject(&health, 5000.0);
        assert_eq!(health.admit_at(at(5001.2)), Admission::Trial, "long healthy, it starts over");
    }

    #[test]
    fn a_quarantine_has_an_upper_end() {
        let health = health();
        let mut now = 0.0;
        for _ in 0..12 {
            eject(&health, now);
            now += 600.0 - 1.0;
            health.called_at(Called { admission: health.admit_at(at(now)), ..CALL }, at(now));
        }
        eject(&health, now);
        assert_eq!(health.admit_at(at(now + 331.0)), Admission::Trial);
    }
}
