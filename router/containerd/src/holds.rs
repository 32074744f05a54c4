//! Exit barrier (mode `proxy`): a held exit is answered to the waiting shim before TaskExit is
//! published with that status.
//!
//! ```text
//!   source shim --- Rule ----> requested (answered once the lane is at the exit: what goes before it is delivered)
//!               --- Released > released  (the status that the shim's caller has received)
//!   lane ---------- reached, started --> TaskExit is published once both are resolved
//! ```
//!
//! An exit is released by the id of its hold, which the proxy makes, or else by its signal's.
//! TaskExit also waits for the process's exec-started, which may be received after the request.
//! Each wait ends by a timeout of its own.

mod process;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

pub use self::process::{Process, ProcessEnd, Processes, Reporter};

/// Exits, and holds, that are remembered. Each is requested within moments or never: without a
/// bound a year's would stay.
const MOST: usize = 8192;
/// A proxy sends its request as soon as the process has ended: an exit without one is published
/// after this.
const REQUESTED_WITHIN: Duration = Duration::from_secs(1);
/// A proxy that sent a request reports its release by then: the longest hold, and as long as a busy
/// machine may take.
const RELEASED_WITHIN: Duration = Duration::from_secs(7);
/// A shim retries an event for some 21 s: exec-started that was not received by then is lost.
const STARTED_WITHIN: Duration = Duration::from_secs(25);
/// A shim publishes exec-started before TaskExit. Where TaskExit was received first, its shim
/// retries exec-started, for the first time a second later, or does not publish it at all.
const RETRIED_WITHIN: Duration = Duration::from_secs(3);

/// An input to the barrier of one exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A proxy holds a reply until the ruling.
    Requested,
    /// The event that the process started has not been received.
    StartMissing,
    /// That event is published, or will not be received any more.
    StartResolved,
    /// The pid, which was not known when the exit was reported.
    Pid(u32),
    /// The shim itself has published TaskExit.
    Exited,
    /// Whether an OOM kill of the container was ruled until the exit.
    Oom(bool),
    /// Everything before the exit is delivered; with its ruled status.
    Reached(Option<u32>),
    /// The shim's caller has received this status.
    Released(u32),
    /// No request, or no release, was received in time.
    ReleaseLate,
}

/// The barrier of one exit, as a state machine without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Barrier {
    requested: bool,
    oom: Option<bool>,
    reached: Option<Option<u32>>,
    released: Option<u32>,
    release_late: bool,
    start_missing: bool,
    start_resolved: bool,
    exited: bool,
    pid: Option<u32>,
}

/// What a held reply is released with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The ruled status; `None`: the shim's own.
    pub status: Option<u32>,
    /// Whether an OOM kill of the container was ruled; `None`: not known.
    pub oom: Option<bool>,
}

/// What TaskExit is published with; what is not known here stays as it was ruled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The status that the shim's caller has received.
    pub status: Option<u32>,
    /// The pid, which was not known when the exit was reported.
    pub pid: Option<u32>,
}

impl Barrier {
    /// Applies an input. Each may be received more than once, and in any order.
    pub fn apply(&mut self, input: Input) {
        match input {
            Input::Requested => self.requested = true,
            Input::StartMissing => self.start_missing = true,
            Input::StartResolved => self.start_resolved = true,
            Input::Pid(pid) => self.pid = Some(pid),
            Input::Exited => self.exited = true,
            Input::Oom(oom) => self.oom = Some(oom),
            Input::Reached(status) => self.reached = Some(status),
            Input::Released(status) => (self.requested, self.released) = (true, Some(status)),
            Input::ReleaseLate => self.release_late = true,
        }
    }

    /// The answer to the request, once it can be answered.
    pub fn answer(&self) -> Option<Answer> {
        Some(Answer { status: self.reached?, oom: self.oom })
    }

    /// What TaskExit is published with, once it can be.
    pub fn published(&self) -> Option<Published> {
        let released = self.released.is_some() || self.release_late;
        let clear = self.reached.is_some() && released && !self.awaits_start();
        clear.then_some(Published { status: self.released, pid: self.pid })
    }

    /// How long the lane waits for the release from now on; none: not at all.
    fn release_timeout(&self) -> Option<Duration> {
        let within = if self.requested { RELEASED_WITHIN } else { REQUESTED_WITHIN };
        (self.released.is_none() && !self.release_late).then_some(within)
    }

    /// How long the lane waits for the process's start from now on; none: not at all.
    fn start_timeout(&self) -> Option<Duration> {
        let within = if self.exited { RETRIED_WITHIN } else { STARTED_WITHIN };
        self.awaits_start().then_some(within)
    }

    /// Whether the event that the process started goes before TaskExit, and is not published yet.
    pub fn awaits_start(&self) -> bool {
        self.start_missing && !self.start_resolved
    }
}

/// A hold that a proxy made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hold {
    /// It is of this exit.
    Of(String),
    /// It was released before its request was handled.
    Released(u32),
}

/// At most `MOST` values by text keys: the oldest is evicted.
#[derive(Debug)]
struct Recent<T> {
    of: HashMap<String, T>,
    order: VecDeque<String>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { of: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    fn entry(&mut self, key: &str, new: impl FnOnce() -> T) -> &mut T {
        if !self.of.contains_key(key) {
            if self.order.len() >= MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.of.remove(&oldest);
            }
            self.order.push_back(key.to_owned());
        }
        self.of.entry(key.to_owned()).or_insert_with(new)
    }
}

#[derive(Debug, Default)]
struct HoldState {
    exits: Recent<watch::Sender<Barrier>>,
    holds: Recent<Hold>,
}

/// The exits that are held, by the id of their signal. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<Mutex<HoldState>>);

impl Holds {
    /// The ruling of an exit, once everything before it is delivered.
    pub async fn ruled(&self, id: &str) -> Answer {
        let mut barrier = self.change(id, Some(Input::Requested));
        // The sender is kept for longer than a request is answered; without it there is no ruling.
        let reached = barrier.wait_for(|it| it.answer().is_some()).await;
        reached.ok().and_then(|it| it.answer()).unwrap_or_default()
    }

    /// Applies an input to the barrier of an exit.
    pub fn apply(&self, id: &str, input: Input) {
        drop(self.change(id, Some(input)));
    }

    /// An input has ended the process of this exit.
    pub fn ended(&self, id: &str, ended: &ProcessEnd, reporter: Reporter) {
        if ended.is_first && !ended.started {
            self.apply(id, Input::StartMissing);
        }
        if reporter == Reporter::Shim {
            self.apply(id, Input::Exited);
        }
        if let Some(status) = ended.released {
            self.apply(id, Input::Released(status));
        }
    }

    /// The hold that a proxy made is of this exit. Its release may have been received before.
    pub fn bind(&self, hold: &str, id: &str) {
        let of = Hold::Of(id.to_owned());
        let before = {
            let mut state = self.state();
            std::mem::replace(state.holds.entry(hold, || of.clone()), of)
        };
        if let Hold::Released(status) = before {
            self.apply(id, Input::Released(status));
        }
    }

    /// A hold is released. False: its exit is not known, or not yet.
    pub fn release(&self, hold: &str, status: u32) -> bool {
        let of = self.state().holds.entry(hold, || Hold::Released(status)).clone();
        match of {
            Hold::Of(id) => {
                self.apply(&id, Input::Released(status));
                true
            }
            Hold::Released(_) => false,
        }
    }

    /// The current barrier of an exit.
    pub fn barrier(&self, id: &str) -> Barrier {
        *self.change(id, None).borrow()
    }

    /// Waits until TaskExit can be published. Each of the two waits, for the release and for the
    /// process's start, ends by its own timeout.
    pub async fn published(&self, id: &str) -> Published {
        let released = self.wait(id, Barrier::release_timeout, Input::ReleaseLate);
        let started = self.wait(id, Barrier::start_timeout, Input::StartResolved);
        tokio::join!(released, started);
        self.barrier(id).published().unwrap_or_default()
    }

    /// Waits until a barrier has no such timeout any more; one that is over is an input.
    async fn wait(&self, id: &str, timeout_of: fn(&Barrier) -> Option<Duration>, late: Input) {
        let mut barrier = self.change(id, None);
        loop {
            let Some(within) = timeout_of(&barrier.borrow_and_update()) else { return };
            match timeout(within, barrier.wait_for(|it| timeout_of(it) != Some(within))).await {
                Ok(Ok(_)) => {}
                // It was evicted.
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::debug!(id, input = ?late, ?within, "timeout of a held exit");
                    self.apply(id, late);
                }
            }
        }
    }

    fn change(&self, id: &str, input: Option<Input>) -> watch::Receiver<Barrier> {
        let mut state = self.state();
        let sender = state.exits.entry(id, watch::Sender::default);
        if let Some(input) = input {
            sender.send_modify(|barrier| barrier.apply(input));
        }
        sender.subscribe()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, HoldState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn request_answered_first_and_its_status_published() {
        let holds = Holds::default();
        let lane = async {
            holds.apply("e", Input::Oom(true));
            holds.apply("e", Input::Reached(Some(137)));
            holds.published("e").await.status
        };
        let proxy = async {
            holds.bind("p-1", "e");
            let ruled = holds.ruled("e").await;
            assert!(holds.release("p-1", 3));
            ruled
        };
        let ruled = Answer { status: Some(137), oom: Some(true) };
        assert_eq!(tokio::join!(lane, proxy), (Some(3), ruled));
        assert_eq!(holds.ruled("e").await, ruled, "requested again, it is the same");
    }

    #[tokio::test]
    async fn hold_released_before_its_request_is_not_held() {
        let holds = Holds::default();
        assert!(!holds.release("p-1", 3));
        holds.bind("p-1", "e");
        holds.apply("e", Input::Reached(None));
        assert_eq!(holds.published("e").await.status, Some(3));
    }

    #[test]
    fn each_wait_of_a_barrier_has_its_timeout() {
        use Input::{Exited, Pid, ReleaseLate, Released, Requested, StartMissing, StartResolved};
        for (inputs, release, start) in [
            (&[][..], Some(REQUESTED_WITHIN), None),
            (&[Requested], Some(RELEASED_WITHIN), None),
            (&[ReleaseLate, Exited], None, None),
            (&[StartMissing, Released(3)], None, Some(STARTED_WITHIN)),
            (&[StartMissing, Released(3), Exited], None, Some(RETRIED_WITHIN)),
            (&[StartResolved, StartMissing, Released(3), Pid(7)], None, None),
        ] {
            let mut barrier = Barrier::default();
            inputs.iter().for_each(|input| barrier.apply(*input));
            assert_eq!((barrier.release_timeout(), barrier.start_timeout()), (release, start), "{inputs:?}");
            assert_eq!(barrier.published(), None, "the lane is not there yet");
            barrier.apply(Input::Reached(None));
            let clear = release.is_none() && start.is_none();
            assert_eq!(barrier.published().is_some(), clear, "{inputs:?}");
        }
    }

    #[tokio::test]
    async fn exit_without_request_is_published_after_its_timeout() {
        let holds = Holds::default();
        holds.apply("e", Input::Pid(7));
        holds.apply("e", Input::Reached(Some(137)));
        assert_eq!(holds.published("e").await, Published { status: None, pid: Some(7) });
    }

    #[test]
    fn oldest_exits_and_holds_are_evicted() {
        let holds = Holds::default();
        for at in 0..MOST + 10 {
            holds.apply(&at.to_string(), Input::Reached(None));
            holds.release(&at.to_string(), 0);
        }
        let state = holds.state();
        assert_eq!((state.exits.of.len(), state.holds.of.len()), (MOST, MOST));
        assert!(state.exits.of.contains_key("10") && !state.holds.of.contains_key("9"));
    }
}
