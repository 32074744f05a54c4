//! `on_failure` of a policy's file: a policy that is never skipped, and a fixed ruling in place of
//! one that fails.

use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::ruling::{Action, FailureHandled, FaultKind, Opinion};
use coroner_core::signal::Signal;
use coroner_policy::Chain;
use coroner_tests::guests::component;

use super::{Dropped, dropped, exit, kill, ours};

fn failing(name: &str, toml: &str) -> Dropped {
    let dropped = dropped(&[("50-x.wasm", &component(name).unwrap()), ("50-x.toml", toml.as_bytes())]);
    assert_eq!(dropped.refused, []);
    dropped
}

fn rule(chain: &mut Chain, signal: &Signal, case: &Case) -> (Opinion, Vec<Action>, Option<String>) {
    let outcome = chain.rule(signal, case);
    (outcome.opinions[1].clone(), outcome.actions, outcome.illegal)
}

#[test]
fn held_policy_is_called_in_quarantine_and_twice_a_signal() {
    let dropped = failing("trap", "on_failure = 'hold'");
    let mut chain = dropped.chain();
    for _ in 0..20 {
        let (opinion, actions, _) = rule(&mut chain, &kill(), &ours());
        assert_eq!(opinion.fault.unwrap().kind, FaultKind::Trap);
        let Some(FailureHandled::Retried(first)) = opinion.on_failure else { panic!("one call") };
        assert_eq!((first.kind, actions), (FaultKind::Trap, vec![Action::TaskOom]));
    }
}

/// A policy that fails once its memory is full: on a new instance it rules.
#[test]
fn held_policy_rules_on_a_new_instance_after_a_fault() {
    let dropped = failing("leaker", "on_failure = 'hold'");
    let mut chain = dropped.chain();
    let mut retried = 0;
    for _ in 0..9000 {
        let (opinion, ..) = rule(&mut chain, &kill(), &ours());
        assert_eq!(opinion.fault, None);
        retried += u32::from(opinion.on_failure.is_some());
    }
    assert_eq!(retried, 2, "16 MiB last for some four thousand calls of 4 KiB");
}

#[test]
fn fixed_ruling_applies_to_faults_and_in_quarantine() {
    let dropped = failing("trap", "[on_failure]\ntask-oom = false\n");
    let mut chain = dropped.chain();
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let (opinion, actions, illegal) = rule(&mut chain, &kill(), &ours());
        assert_eq!((actions, illegal), (vec![], None));
        assert_eq!(opinion.on_failure, Some(FailureHandled::Fixed(vec![])));
        kinds.push(opinion.fault.unwrap().kind);
    }
    assert_eq!(kinds[..5], [FaultKind::Trap; 5]);
    assert_eq!(kinds[5], FaultKind::Quarantined);
}

#[test]
fn fixed_status_is_published_where_the_mode_honours_it() {
    let dropped = failing("trap", "[on_failure]\ntask-oom = true\nstatus = 3\n");
    let mut chain = dropped.chain();
    let (.., actions, illegal) = rule(&mut chain, &exit(), &ours());
    assert_eq!(actions, [Action::TaskExit(None)], "the native default");
    assert!(illegal.unwrap().contains("status 3 where this mode cannot honour a status"));
    let writable = Case::new(&[Known::OomWritable, Known::ExitWritable, Known::StatusWritable]);
    let (.., actions, illegal) = rule(&mut chain, &exit(), &writable);
    assert_eq!((actions, illegal), (vec![Action::TaskOom, Action::TaskExit(Some(3))], None));
}

#[test]
fn every_mistake_of_a_file_is_in_its_refusal() {
    let toml = b"mod = 'off'\n[on_failure]\nstatus = 256\n[limits]\nfuel = 0\n";
    let dropped = dropped(&[("50-x.wasm", &component("trap").unwrap()), ("50-x.toml", toml)]);
    for key in ["mod: is not a key", "on_failure.status: is not", "limits.fuel: is not"] {
        assert!(dropped.reason().contains(key), "{}", dropped.reason());
    }
}
