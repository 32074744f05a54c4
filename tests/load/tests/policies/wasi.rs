//! Policies built for WASI: clocks that show the signal's time, output to the log, and nothing
//! else.

use coroner_core::ruling::{FaultKind, Opinion, Ruling};
use coroner_core::signal::{Moment, Signal};
use coroner_tests::guests::{sockets_component, wasi_component};

use super::{Dropped, dropped, exit, kill, ours};

fn opinion(dropped: &Dropped, signal: &Signal) -> Opinion {
    dropped.chain().rule(signal, &ours()).opinions[1].clone()
}

fn because(opinion: &Opinion) -> &str {
    let Some(Ruling::Decide(decision)) = &opinion.ruling else { panic!("{opinion:?}") };
    &decision.because
}

fn at(wall_ms: Option<u64>, boot_ns: Option<u64>) -> Signal {
    Signal { at: Moment { boot_ns, wall_ms, received_ms: 7 }, ..kill() }
}

#[test]
fn clocks_and_random_numbers_derive_from_the_signal() {
    let dropped = dropped(&[("50-clock.wasm", &wasi_component("clock").unwrap())]);
    assert_eq!(dropped.refused, []);
    let first = opinion(&dropped, &at(Some(1_795_490_284_628), Some(5_449_441_963_809)));
    let (wall, boot) = (1_795_490_284_628_u64 * 1_000_000, 5_449_441_963_809_u64);
    assert!(because(&first).starts_with(&format!("{wall:016x} {boot:016x} ")), "{first:?}");
    // Another instance, at another time of day: the same answer, byte for byte.
    let again = opinion(&dropped, &at(Some(1_795_490_284_628), Some(5_449_441_963_809)));
    assert_eq!(again.ruling, first.ruling);
    let unknown = opinion(&dropped, &at(None, None));
    assert!(because(&unknown).starts_with(&format!("{:016x} {:016x} ", 7_000_000, 0)), "{unknown:?}");
    let random = |opinion: &Opinion| because(opinion).split(' ').nth(2).unwrap().to_owned();
    assert_eq!(random(&unknown), random(&first), "the same signal");
    let other = Signal { id: "n:s:c1:2".to_owned(), ..kill() };
    assert_ne!(random(&opinion(&dropped, &other)), random(&first), "another signal");
}

#[test]
fn wasi_environment_arguments_and_directories_are_empty() {
    let dropped = dropped(&[("50-world.wasm", &wasi_component("world").unwrap())]);
    let ruled = opinion(&dropped, &kill());
    // 8 is EBADF: there is no descriptor 3.
    assert_eq!(because(&ruled), "variables 0, arguments 0, directory 8");
}

#[test]
fn policy_that_waits_or_exits_traps_with_the_reason() {
    for (name, expected) in [("sleep", "cannot wait: its clock stands still"), ("exit", "3")] {
        let dropped = dropped(&[("50-x.wasm", &wasi_component(name).unwrap())]);
        assert_eq!(dropped.refused, [], "{name}");
        let fault = opinion(&dropped, &exit()).fault.unwrap();
        assert_eq!(fault.kind, FaultKind::Trap, "{name}: {fault:?}");
        assert!(fault.message.contains(expected), "{name}: {fault:?}");
    }
}

/// Work of the host that costs the guest a dozen instructions is bounded without a clock.
#[test]
fn random_numbers_cost_fuel_and_output_is_bounded() {
    let fault = |name: &str| {
        let dropped = dropped(&[("50-x.wasm", &wasi_component(name).unwrap())]);
        assert_eq!(dropped.refused, [], "{name}");
        let ruled = opinion(&dropped, &kill());
        (ruled.fault.unwrap(), ruled.fuel)
    };
    let (gambled, fuel) = fault("gamble");
    assert_eq!((gambled.kind, fuel), (FaultKind::Fuel, 10_000_000), "{gambled:?}");
    let (gushed, _) = fault("gush");
    assert_eq!(gushed.kind, FaultKind::Log, "{gushed:?}");
    assert!(gushed.message.contains("bytes of log output"), "{gushed:?}");
}

#[test]
fn import_of_files_or_sockets_is_refused_by_name() {
    let check = |bytes: &[u8], expected: &[&str]| {
        let dropped = dropped(&[("50-x.wasm", bytes)]);
        for text in expected {
            assert!(dropped.reason().contains(text), "{}", dropped.reason());
        }
    };
    check(&wasi_component("files").unwrap(), &["wasi:filesystem/types@0.2.", "[method]descriptor.open-at"]);
    check(
        &sockets_component().unwrap(),
        &["imports wasi:sockets/instance-network@0.2.0, which is not allowed"],
    );
    let newer = br#"(component (import "wasi:http/types@0.2.0" (instance)))"#;
    check(
        &wat::parse_bytes(newer).unwrap(),
        &["does not export coroner:policy/rules@0.1.0 or coroner:policy/rules@0.2.0"],
    );
}
