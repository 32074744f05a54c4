//! What one ruling takes: the native default, a chain without policies, and a chain with the
//! bundled policy.

mod paired;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::native_default::default_ruling;
use coroner_core::ruling::Action;
use coroner_core::signal::{
    ContainerId, Event, Evidence, Exited, Level, Moment, OomKilled, Owner, Signal, Target, Victim,
};
use coroner_policy::{Chain, ChainSnapshot, CompileSettings, Host, PolicyManager, Settings};
use coroner_tests::binary;
use criterion::Criterion;
use paired::Pairs;

const PAIRS: usize = 101;
/// Rulings on end are timed together: a native one takes less than reading the clock twice.
const ON_END: u32 = 1000;
/// The pause before a ruling that is timed alone. Other processes use the core and its caches
/// meanwhile, as on a node where signals are rare.
const QUIET: Duration = Duration::from_millis(20);

fn main() {
    let program = Some(binary::find("coroner", "coroner-cli").expect("the workspace is built"));
    let settings = Settings {
        compile: CompileSettings { program, ..CompileSettings::default() },
        ..Settings::default()
    };
    let host = Arc::new(Host::new(settings).expect("the engine runs on this machine"));
    let manager = PolicyManager::start(Arc::clone(&host));
    assert_eq!(manager.refused(), []);
    let mut empty = Chain::new(Arc::clone(&host), &ChainSnapshot { generation: 1, policies: Vec::new() });
    let mut bundled = Chain::new(Arc::clone(&host), &manager.active_chain().now());
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    let mut comparisons = Vec::new();
    for (name, signal, case) in [("kill", kill(8), case()), ("exit", exit(), case())] {
        let ruled = bundled.rule(&signal, &case);
        assert!(ruled.opinions.iter().all(|it| it.ruling.is_some()), "{ruled:?}");
        let mut native = || default_ruling(black_box(&signal), black_box(&case)).actions;
        let mut empty = || empty.rule(black_box(&signal), black_box(&case)).actions;
        let mut bundled = || bundled.rule(black_box(&signal), black_box(&case)).actions;
        let mut group = criterion.benchmark_group(name);
        group.bench_function("default_ruling", |bencher| bencher.iter(&mut native));
        group.bench_function("no policies", |bencher| bencher.iter(&mut empty));
        group.bench_function("00-kubernetes", |bencher| bencher.iter(&mut bundled));
        group.finish();
        comparisons.push(compare(name, "default_ruling", &mut native, &mut bundled, (on_end, ON_END)));
        comparisons.push(compare(name, "no policies", &mut empty, &mut bundled, (on_end, ON_END)));
        comparisons.push(compare(
            format!("{name} after {QUIET:?} of quiet"),
            "no policies",
            &mut empty,
            &mut bundled,
            (after_quiet, 1),
        ));
    }
    criterion.final_summary();
    paired::print(
        "one ruling with 00-kubernetes in wasm against native ones, alternating",
        "wasm",
        &comparisons,
    );
}

/// Runs a variant of ruling, and returns how long it took.
type Timer = fn(&mut dyn FnMut() -> Vec<Action>) -> Duration;

/// `times` is how many rulings `time` times together.
fn compare<N, W>(
    what: impl Into<String>,
    baseline: &'static str,
    native: &mut N,
    wasm: &mut W,
    (time, times): (Timer, u32),
) -> Pairs
where
    N: FnMut() -> Vec<Action>,
    W: FnMut() -> Vec<Action>,
{
    let mut pairs = Pairs::new(what, baseline);
    for _ in 0..PAIRS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = time(native);
            (native, time(wasm))
        } else {
            let wasm = time(wasm);
            (time(native), wasm)
        };
        pairs.add(native, wasm, times);
    }
    pairs
}

fn on_end(rule: &mut dyn FnMut() -> Vec<Action>) -> Duration {
    let begun = Instant::now();
    for _ in 0..ON_END {
        black_box(rule());
    }
    begun.elapsed()
}

fn after_quiet(rule: &mut dyn FnMut() -> Vec<Action>) -> Duration {
    std::thread::sleep(QUIET);
    let begun = Instant::now();
    black_box(rule());
    begun.elapsed()
}

/// A container of a pod that was killed in before.
fn case() -> Case {
    let mut case = Case::new(&[
        Known::KillCount,
        Known::Victim,
        Known::ExitStatus,
        Known::Memory,
        Known::Owner,
        Known::OomWritable,
        Known::ExitWritable,
        Known::StatusWritable,
    ]);
    case.memory_last = Some(133 << 20);
    case.update(&kill(7), &[Action::TaskOom]);
    case
}

fn kill(total: u64) -> Signal {
    signal(Event::OomKill(OomKilled {
        added: Some(1),
        total: Some(total),
        group: Some(false),
        level: Level::Container,
        cgroup: Some(format!("/kubepods/burstable/pod{POD}/{CONTAINER}")),
        limit_bytes: Some(128 << 20),
        victim: Some(Victim { pid: 4711, comm: "java".to_owned(), is_init: Some(true) }),
        ..OomKilled::new(Evidence::Counter)
    }))
}

fn exit() -> Signal {
    signal(Event::Exited(Exited {
        pid: Some(4711),
        is_init: Some(true),
        status: Some(137),
        signal: Some(9),
        core: Some(false),
        ..Exited::unknown()
    }))
}

const POD: &str = "5d2f4f0e-6c0b-4a53-9a55-3f0f5f1f3c11";
const CONTAINER: &str = "9f1c2b7a4e5d60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

fn signal(event: Event) -> Signal {
    Signal {
        id: format!("node-1:stream:{CONTAINER}:1"),
        at: Moment {
            boot_ns: Some(91_000_000_000),
            wall_ms: Some(1_795_500_000_000),
            received_ms: 1_795_500_000_001,
        },
        target: Target {
            node: "node-1".to_owned(),
            guest: Some("guest-1".to_owned()),
            containerd_namespace: Some("k8s.io".to_owned()),
            sandbox_id: Some(CONTAINER.chars().rev().collect()),
            container_id: ContainerId::try_from(CONTAINER.to_owned()).expect("64 hexadecimal digits"),
            exec_id: None,
            owner: Some(Owner {
                pod: Some("shop-7d4b9c6f5-x2x8v".to_owned()),
                namespace: Some("production".to_owned()),
                pod_uid: Some(POD.to_owned()),
                container: Some("shop".to_owned()),
                init_container: Some(false),
                image: Some("registry.example/shop:1.2.3".to_owned()),
            }),
        },
        event,
        attributes: Vec::new(),
    }
}
