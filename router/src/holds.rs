//! Exits that somebody waits for: who waits is told the ruling first, and TaskExit carries what was told.
//!
//! ```text
//!   source shim --- Rule -----> asked    (answered when the lane is at the exit: what goes before it is delivered)
//!               --- Released -> released (what was told)          sink/containerd publishes TaskExit then
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Exits remembered. Each is asked for within moments or never: without a bound a year's would stay.
const MOST: usize = 8192;
/// Who waits for a process asks as soon as it has ended: what nobody asked about by then is published.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// Who asked has told by then what it released: the longest hold there is, and as long as a busy machine may take.
const RELEASED_WITHIN: Duration = Duration::from_secs(7);

/// How far one exit is.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    asked: bool,
    /// What goes before it is delivered, and this is its ruled status.
    reached: Option<Option<u32>>,
    released: Option<u32>,
}

#[derive(Debug, Default)]
struct Exits {
    of: HashMap<String, watch::Sender<State>>,
    order: VecDeque<String>,
}

/// The exits that are held, by the id of their signal. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<Mutex<Exits>>);

impl Holds {
    /// The ruled status of an exit, once everything before it is delivered; none: it is not known.
    pub async fn ruled(&self, id: &str) -> Option<u32> {
        let mut state = self.change(id, |state| state.asked = true);
        // The sender is kept for longer than anybody waits; with it gone there is nothing to tell.
        let reached = state.wait_for(|state| state.reached.is_some()).await;
        reached.ok().and_then(|state| state.reached).flatten()
    }

    /// Whoever waited was told this.
    pub fn release(&self, id: &str, status: u32) {
        drop(self.change(id, |state| (state.asked, state.released) = (true, Some(status))));
    }

    /// Everything before an exit is delivered.
    pub fn reached(&self, id: &str, ruled: Option<u32>) {
        drop(self.change(id, |state| state.reached = Some(ruled)));
    }

    /// What whoever waits was told; none: nobody waits, or nobody said.
    pub async fn released(&self, id: &str) -> Option<u32> {
        let mut state = self.change(id, |_| {});
        let asked = timeout(ASKED_WITHIN, state.wait_for(|it| it.asked)).await.is_ok();
        if !asked {
            return None;
        }
        let released = timeout(RELEASED_WITHIN, state.wait_for(|it| it.released.is_some())).await;
        released.ok()?.ok()?.released
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut State)) -> watch::Receiver<State> {
        let mut exits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !exits.of.contains_key(id) {
            if exits.order.len() >= MOST
                && let Some(oldest) = exits.order.pop_front()
            {
                exits.of.remove(&oldest);
            }
            exits.order.push_back(id.to_owned());
        }
        let state = exits.of.entry(id.to_owned()).or_default();
        state.send_modify(change);
        state.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_first_and_what_it_told_is_published() {
        let holds = Holds::default();
        let lane = async {
            holds.reached("e", Some(137));
            holds.released("e").await
        };
        let proxy = async {
            let ruled = holds.ruled("e").await;
            holds.release("e", 3);
            ruled
        };
        assert_eq!(tokio::join!(lane, proxy), (Some(3), Some(137)));
        assert_eq!(holds.ruled("e").await, Some(137), "asked again, it is the same");
    }

    #[tokio::test]
    async fn what_nobody_asks_about_or_releases_is_not_held_for_ever() {
        let holds = Holds::default();
        holds.change("silent", |state| state.asked = true);
        let (nobody, silent) = (holds.released("nobody"), holds.released("silent"));
        assert_eq!(tokio::join!(nobody, silent), (None, None));
    }

    #[tokio::test]
    async fn exits_are_forgotten_the_oldest_first() {
        let holds = Holds::default();
        for at in 0..MOST + 10 {
            holds.reached(&at.to_string(), None);
        }
        assert_eq!(holds.0.lock().unwrap().of.len(), MOST);
        assert!(holds.0.lock().unwrap().of.contains_key("10"));
    }
}
