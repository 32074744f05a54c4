//! The clock behind time limits: a thread that advances the engine's epoch while any policy is called, and rests else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// Between two ticks: limits are counted in these. Finer would cost wake-ups and buy nothing, for fuel ends what computes.
const TICK: Duration = Duration::from_millis(5);
/// Ticks without a call before the thread rests: within a burst nobody pays for waking it.
const REST_AFTER: u32 = 20;

/// Ticks while somebody calls.
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
pub(super) struct Running(Arc<Calls>);

impl Ticker {
    /// A thread that ends with the engine.
    pub(super) fn start(engine: &Engine) -> std::io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let (engine, shared) = (engine.weak(), Arc::clone(&calls));
        let handle = std::thread::Builder::new()
            .name("policy-ticker".to_owned())
            .stack_size(64 << 10)
            .spawn(move || tick(&engine, &shared))?;
        Ok(Self { calls, thread: handle.thread().clone() })
    }

    /// Ticks until the answer is dropped.
    pub(super) fn running(&self) -> Running {
        self.calls.running.fetch_add(1, Ordering::SeqCst);
        if self.calls.resting.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(Arc::clone(&self.calls))
    }

    /// Ticks that last at least `time`: the tick that runs may be all but over.
    pub(super) fn ticks(time: Duration) -> u64 {
        u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX - 1) + 1
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // It finds its engine gone, and ends.
        self.thread.unpark();
    }
}

impl Drop for Running {
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
        // Said before the last look: who calls after that look sees it, and wakes this thread.
        calls.resting.store(true, Ordering::SeqCst);
        if calls.running.load(Ordering::SeqCst) == 0 {
            std::thread::park();
        }
        calls.resting.store(false, Ordering::SeqCst);
        quiet = 0;
    }
}
