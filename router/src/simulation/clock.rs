//! The simulated clock: it advances only at the scheduler's request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use coroner_journal::Timer;

#[derive(Debug, Default)]
struct ClockState {
    now_ms: u64,
    count: u64,
    alarms: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

/// A clock, and the alarms that are set on it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Mutex<ClockState>>);

impl Clock {
    /// The timer of the journal on this clock.
    pub(super) fn timer(&self) -> Timer {
        let clock = self.clone();
        Timer::new(move |duration| {
            let alarm = clock.set(duration);
            Box::pin(async move { drop(alarm.await) })
        })
    }

    fn set(&self, duration: Duration) -> oneshot::Receiver<()> {
        let (fire, alarm) = oneshot::channel();
        let mut state = self.0.lock().unwrap();
        state.count += 1;
        let due = state.now_ms + u64::try_from(duration.as_millis()).unwrap();
        let key = (due, state.count);
        state.alarms.insert(key, fire);
        alarm
    }

    /// Advances, and fires what is due.
    pub(super) fn advance(&self, ms: u64) {
        let mut state = self.0.lock().unwrap();
        state.now_ms += ms;
        let first_later = (state.now_ms + 1, 0);
        let later = state.alarms.split_off(&first_later);
        let due = std::mem::replace(&mut state.alarms, later);
        drop(state);
        due.into_values().for_each(|fire| fire.send(()).unwrap_or(()));
    }

    /// Milliseconds until the next alarm that is still awaited.
    pub(super) fn until_next(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap();
        state.alarms.retain(|_, fire| !fire.is_closed());
        let now = state.now_ms;
        state.alarms.first_key_value().map(|((due, _), _)| due - now)
    }
}
