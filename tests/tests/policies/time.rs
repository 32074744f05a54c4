//! Time: what fuel does not end, the clock does; what fails too often is put aside, and comes back.

use std::time::Duration;

use coroner::policy::{Chain, Limits, Quarantine, Settings};
use coroner::ruling::{Action, FaultKind};
use coroner_tests::guests::component;

use super::{dropped_with, kill, ours, settings};

fn fault(chain: &mut Chain, at: usize) -> Option<FaultKind> {
    let outcome = chain.rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    outcome.opinions[at].fault.as_ref().map(|fault| fault.kind)
}

#[test]
fn a_call_ends_in_time_where_fuel_would_last_for_hours() {
    let limits = Limits { fuel: u64::MAX / 2000, ..Limits::default() };
    let dropped =
        dropped_with(Settings { limits, ..settings() }, &[("50-spin.wasm", &component("spin").unwrap())]);
    assert_eq!(dropped.refused, []);
    assert_eq!(fault(&mut dropped.chain(), 1), Some(FaultKind::Time));
}

#[test]
fn the_chain_has_a_time_of_its_own_and_those_that_come_too_late_are_not_called() {
    let limits = Limits { fuel: u64::MAX / 2000, ..Limits::default() };
    let spin = component("spin").unwrap();
    let names: Vec<String> = (50..56).map(|at| format!("{at}-spin.wasm")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &spin[..])).collect();
    let dropped = dropped_with(Settings { limits, ..settings() }, &files);
    let outcome = dropped.chain().rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    let kinds: Vec<_> = outcome.opinions[1..].iter().map(|it| it.fault.as_ref().unwrap().kind).collect();
    assert_eq!(kinds[0], FaultKind::Time);
    assert_eq!(kinds[5], FaultKind::ChainTime, "six times 20 ms are more than 50: {kinds:?}");
}

#[test]
fn what_fails_too_often_is_quarantined_for_every_worker_and_comes_back_by_a_trial() {
    let quarantine = Quarantine {
        shortest: Duration::from_millis(50),
        longest: Duration::from_millis(50),
        ..Quarantine::default()
    };
    let dropped =
        dropped_with(Settings { quarantine, ..settings() }, &[("50-trap.wasm", &component("trap").unwrap())]);
    let (mut one, mut other) = (dropped.chain(), dropped.chain());
    for _ in 0..5 {
        assert_eq!(fault(&mut one, 1), Some(FaultKind::Trap));
    }
    assert_eq!(fault(&mut one, 1), Some(FaultKind::Quarantined));
    assert_eq!(fault(&mut other, 1), Some(FaultKind::Quarantined), "each worker hears of it");
    // Not a wait for something to have happened: time itself is what is asked for.
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(fault(&mut other, 1), Some(FaultKind::Trap), "one trial");
    assert_eq!(fault(&mut one, 1), Some(FaultKind::Quarantined), "and back it goes");
}

#[test]
fn time_burnt_within_fuel_is_counted() {
    let quarantine = Quarantine { burnt: Duration::from_millis(20), ..Quarantine::default() };
    // Time is no matter of this test: a call may take a second.
    let limits = Limits { fuel: 200_000_000, call: Duration::from_secs(1), ..Limits::default() };
    let settings = Settings { quarantine, limits, signal: Duration::from_secs(1), ..settings() };
    let dropped = dropped_with(settings, &[("50-slow.wasm", &component("slow").unwrap())]);
    assert_eq!(dropped.refused, []);
    let mut chain = dropped.chain();
    assert_eq!(fault(&mut chain, 1), None, "one slow call is no fault");
    let put_aside = (0..200).any(|_| fault(&mut chain, 1) == Some(FaultKind::Quarantined));
    assert!(put_aside, "some 80 million units of fuel are milliseconds each");
}
