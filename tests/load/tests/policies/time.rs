//! Time: what fuel does not end, the clock does; what fails too often is quarantined, and retried
//! later.

use std::time::Duration;

use coroner_core::ruling::{Action, FaultKind};
use coroner_policy::{Chain, Limits, QuarantineSettings, Settings};
use coroner_tests::guests::component;

use super::{dropped_with, kill, ours, settings};

fn fault(chain: &mut Chain, at: usize) -> Option<FaultKind> {
    let outcome = chain.rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    outcome.opinions[at].fault.as_ref().map(|fault| fault.kind)
}

#[test]
fn call_with_hours_of_fuel_ends_at_its_deadline() {
    let limits = Limits { fuel: u64::MAX / 2000, call: Duration::from_millis(20), ..Limits::default() };
    let dropped =
        dropped_with(Settings { limits, ..settings() }, &[("50-spin.wasm", &component("spin").unwrap())]);
    assert_eq!(dropped.refused, []);
    assert_eq!(fault(&mut dropped.chain(), 1), Some(FaultKind::Time));
}

#[test]
fn chain_deadline_skips_the_remaining_policies() {
    let limits = Limits { fuel: u64::MAX / 2000, call: Duration::from_millis(20), ..Limits::default() };
    let signal = Duration::from_millis(50);
    let spin = component("spin").unwrap();
    let names: Vec<String> = (50..56).map(|at| format!("{at}-spin.wasm")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &spin[..])).collect();
    let dropped = dropped_with(Settings { limits, signal, signal_fuel: u64::MAX, ..settings() }, &files);
    let outcome = dropped.chain().rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    let kinds: Vec<_> = outcome.opinions[1..].iter().map(|it| it.fault.as_ref().unwrap().kind).collect();
    assert_eq!(kinds[0], FaultKind::Time);
    assert_eq!(kinds[5], FaultKind::ChainTime, "six times 20 ms are more than 50: {kinds:?}");
}

#[test]
fn chain_fuel_ends_the_call_that_uses_it_up_and_skips_the_rest() {
    let spin = component("spin").unwrap();
    let files: [(&str, &[u8]); 4] =
        [("50-a.wasm", &spin), ("51-b.wasm", &spin), ("52-c.wasm", &spin), ("53-d.wasm", &spin)];
    let dropped = dropped_with(Settings { signal_fuel: 25_000_000, ..settings() }, &files);
    let outcome = dropped.chain().rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    let kinds: Vec<_> = outcome.opinions[1..].iter().map(|it| it.fault.as_ref().unwrap().kind).collect();
    assert_eq!(kinds, [FaultKind::Fuel, FaultKind::Fuel, FaultKind::ChainFuel, FaultKind::ChainFuel]);
    let fuel: Vec<u64> = outcome.opinions.iter().map(|it| it.fuel).collect();
    assert_eq!((fuel[1], fuel[4], fuel.iter().sum::<u64>()), (10_000_000, 0, 25_000_000));
}

#[test]
fn shadow_uses_no_fuel_of_the_enforced_draft() {
    let spin = component("spin").unwrap();
    let files: [(&str, &[u8]); 3] = [
        ("50-spin.wasm", &spin),
        ("50-spin.toml", b"mode = 'shadow'"),
        ("60-passer.wasm", &component("passer").unwrap()),
    ];
    let dropped = dropped_with(Settings { signal_fuel: 5_000_000, ..settings() }, &files);
    let outcome = dropped.chain().rule(&kill(), &ours());
    assert!(outcome.opinions.iter().all(|it| it.fault.is_none()), "{:?}", outcome.opinions);
    let fault = outcome.shadow.unwrap().rulings[0].fault.clone().unwrap();
    assert_eq!(fault.kind, FaultKind::ChainFuel);
}

#[test]
fn failing_policy_is_quarantined_for_all_workers_until_trial() {
    let quarantine = QuarantineSettings {
        shortest: Duration::from_millis(50),
        longest: Duration::from_millis(50),
        ..QuarantineSettings::default()
    };
    let dropped =
        dropped_with(Settings { quarantine, ..settings() }, &[("50-trap.wasm", &component("trap").unwrap())]);
    let (mut one, mut other) = (dropped.chain(), dropped.chain());
    for _ in 0..5 {
        assert_eq!(fault(&mut one, 1), Some(FaultKind::Trap));
    }
    assert_eq!(fault(&mut one, 1), Some(FaultKind::Quarantined));
    assert_eq!(fault(&mut other, 1), Some(FaultKind::Quarantined), "for each worker");
    // Not a wait for an event: the lapse of time itself is what is tested.
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(fault(&mut other, 1), Some(FaultKind::Trap), "one trial");
    assert_eq!(fault(&mut one, 1), Some(FaultKind::Quarantined), "and back it goes");
}

#[test]
fn slow_calls_within_fuel_lead_to_quarantine() {
    let quarantine = QuarantineSettings { burnt: Duration::from_millis(20), ..QuarantineSettings::default() };
    let limits = Limits { fuel: 200_000_000, ..Limits::default() };
    let settings = Settings { quarantine, limits, signal_fuel: u64::MAX, ..settings() };
    let dropped = dropped_with(settings, &[("50-slow.wasm", &component("slow").unwrap())]);
    assert_eq!(dropped.refused, []);
    let mut chain = dropped.chain();
    assert_eq!(fault(&mut chain, 1), None, "one slow call is not a fault");
    let quarantined = (0..200).any(|_| fault(&mut chain, 1) == Some(FaultKind::Quarantined));
    assert!(quarantined, "some 80 million units of fuel count as 80 ms each");
}
