//! The deterministic simulation: the router's parts in one process, with a simulated clock and
//! disk, and a scheduler that draws every step from a seed.
//!
//! ```text
//!   source -> intake -> worker -> delivery -> lane -> containerd
//!   (simulated)    \  (steps)   /             (simulated)
//!                   journal: writer (steps) -> disk (simulated)
//! ```
//!
//! What runs is the production code of intake, worker, chain, delivery, journal (records, live set,
//! segments, recovery) and the lifecycle lane with its queue. Simulated are sources, disk,
//! containerd and the clock of the write timeout. After every step the [`model`] checks invariants
//! 1, 2, 4, 5, 6 and 8 of the design, and after every operation of the disk it recovers what a
//! crash within it, or after it, would leave.
//!
//! Not simulated: the threads themselves (a worker's and the journal's thread make the same steps,
//! drawn by the scheduler), the sources' protocols, and the connection to containerd with its
//! retries. The suites on real parts have those.
//!
//! `CORONER_TEST_SEEDS` is the number of seeds, `CORONER_TEST_SEED` runs a single one, and prints
//! its steps.

mod clock;
mod disk;
mod fault;
mod life;
mod model;
mod policies;
mod random;
mod receiver;
mod scenario;
mod source;
mod step;
mod tasks;
mod violation;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::fault::Sabotage;
use self::violation::Violation;
use self::world::{Run, Trace};

/// Seeds within which each deliberate fault is found.
const SEARCHED: u64 = 10_000;
/// Seeds of a run of the gate.
const SEEDS: u64 = 10_000;
/// Seeds of the runs that are repeated with a crash within each operation of the disk.
const CRASHED: u64 = 25;
const THREADS: usize = 2;

/// A run, and the invariant that it found violated.
#[derive(Debug)]
struct FailedSeed {
    seed: u64,
    steps: u64,
    violation: Violation,
}

fn run(seed: u64, fault: Option<Sabotage>, dies_at: Option<u64>) -> (Trace, Option<Violation>) {
    finish(Run::new(seed, fault, dies_at))
}

fn finish(mut world: Run) -> (Trace, Option<Violation>) {
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => Some(Violation::new(6, format!("a part panicked: {}", text(&*panic)))),
    };
    (world.trace.clone(), violation)
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

/// Runs these seeds on two threads until one violates an invariant; the lowest of those found.
fn search(seeds: u64, fault: Option<Sabotage>) -> (u64, Option<FailedSeed>) {
    let (next, steps, found) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None::<FailedSeed>));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while found.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let (trace, violation) = run(seed, fault, None);
                    steps.fetch_add(trace.steps, Ordering::Relaxed);
                    if let Some(violation) = violation {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|it| seed < it.seed) {
                            *found = Some(FailedSeed { seed, steps: trace.steps, violation });
                        }
                    }
                }
            });
        }
    });
    (steps.into_inner(), found.into_inner().unwrap())
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn report(FailedSeed { seed, steps, violation }: &FailedSeed) -> String {
    format!(
        "seed {seed} violates {violation} after {steps} steps; run it again with \
         CORONER_TEST_SEED={seed} cargo test --release --workspace --lib -- simulation"
    )
}

#[test]
fn invariants_hold_under_every_seed() {
    if let Some(seed) = from_environment("CORONER_TEST_SEED") {
        let (trace, violation) = finish(Run::new(seed, None, None).verbose(true));
        println!("seed {seed}: {trace:?}");
        if let Some(violation) = violation {
            panic!("{}", report(&FailedSeed { seed, steps: trace.steps, violation }));
        }
        return;
    }
    let seeds = from_environment("CORONER_TEST_SEEDS").unwrap_or(SEEDS);
    let begin = Instant::now();
    let (steps, found) = search(seeds, None);
    if let Some(found) = found {
        panic!("{}", report(&found));
    }
    println!("{seeds} seeds, {steps} steps, {:.1} s", begin.elapsed().as_secs_f64());
}

#[test]
fn crash_within_every_disk_operation_recovered() {
    let mut crashes = 0;
    for seed in 0..CRASHED {
        let (whole, _) = run(seed, None, Some(u64::MAX));
        for operation in 1..=whole.operations {
            let (trace, violation) = run(seed, None, Some(operation));
            assert_eq!(violation, None, "seed {seed}, crash within operation {operation}");
            crashes += u64::from(trace.deaths > 0);
        }
    }
    println!("{crashes} crashes, one within each operation of the disk in {CRASHED} seeds");
    assert!(crashes > 20 * CRASHED, "{crashes}");
}

#[test]
fn seed_reproduces_its_run() {
    for seed in 0..200 {
        assert_eq!(run(seed, None, None), run(seed, None, None), "seed {seed}");
    }
    assert_ne!(run(1, None, None).0, run(2, None, None).0);
}

#[test]
fn every_deliberate_fault_found() {
    for fault in Sabotage::ALL {
        let (_, found) = search(SEARCHED, Some(fault));
        let found = found.unwrap_or_else(|| panic!("{fault:?} is not found within {SEARCHED} seeds"));
        println!("{fault:?}: seed {}, {}", found.seed, found.violation);
        let expected = fault.violates().contains(&found.violation.invariant);
        assert!(expected, "{fault:?} is found as {}", found.violation);
    }
}
