//! The ticker behind timeouts: a thread that advances the engine's epoch during calls, and is
//! parked otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// Length of a tick, the unit of timeouts. A finer one would cost wake-ups without a benefit: fuel
/// ends what computes.
const TICK: Duration = Duration::from_millis(5);
/// Ticks without a call before the thread is parked: within a burst of calls it never has to be
/// woken.
const REST_AFTER: u32 = 20;

/// Advances the epoch during calls.
#[derive(Debug)]
pub(super) struct Ticker {
    calls: Arc<Calls>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Calls {
    running: AtomicUsize,
    resting: AtomicBool,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct RunningCall(Arc<Calls>);

impl Ticker {
    /// Starts the thread, which ends with the engine.
    pub(super) fn start(engine: &Engine) -> std::io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let (engine, shared) = (engine.weak(), Arc::clone(&calls));
        let handle = std::thread::Builder::new()
            .name("policy-ticker".to_owned())
            .stack_size(64 << 10)
            .spawn(move || tick(&engine, &shared))?;
        Ok(Self { calls, thread: handle.thread().clone() })
    }

    /// Ticks until the returned guard is dropped.
    pub(super) fn running(&self) -> RunningCall {
        self.calls.running.fetch_add(1, Ordering::SeqCst);
        if self.calls.resting.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        RunningCall(Arc::clone(&self.calls))
    }

    /// Ticks that last at least `time`: the current tick may be almost over.
    pub(super) fn ticks(time: Duration) -> u64 {
        u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX - 1) + 1
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // The thread finds its engine gone and ends.
        self.thread.unpark();
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &EngineWeak, calls: &Calls) {
    let mut quiet = 0;
    loop {
        std::thread::sleep(TICK);
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
        drop(engine);
        quiet = if calls.running.load(Ordering::SeqCst) > 0 { 0 } else { quiet + 1 };
        if quiet < REST_AFTER {
            continue;
        }
        // Set before the last check: a caller after that check sees it and wakes the thread.
        calls.resting.store(true, Ordering::SeqCst);
        if calls.running.load(Ordering::SeqCst) == 0 {
            std::thread::park();
        }
        calls.resting.store(false, Ordering::SeqCst);
        quiet = 0;
    }
}
