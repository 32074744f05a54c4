//! Bad guests: whatever one does, the draft before it is kept, the audit names the fault, and the
//! next signal is ruled.

use std::time::Duration;

use coroner_core::ruling::{Action, FaultKind};
use coroner_policy::{Limits, Settings};
use coroner_tests::guests::component;

use super::{dropped, dropped_with, exit, kill, kubernetes, ours, settings};

/// `name` behind the default policy: its fault is of this kind, with this message, and changes
/// nothing; twice, then others rule.
fn check(name: &str, kind: FaultKind, expected: &str) {
    let file = format!("50-{name}.wasm");
    let files = [(&*file, &*component(name).unwrap()), ("90-kubernetes.wasm", &kubernetes())];
    let dropped = dropped(&files);
    assert_eq!(dropped.refused, []);
    let mut chain = dropped.chain();
    for _ in 0..2 {
        for (signal, due) in [(kill(), Action::TaskOom), (exit(), Action::TaskExit(None))] {
            let outcome = chain.rule(&signal, &ours());
            assert_eq!(outcome.actions, [due], "{name}");
            assert_eq!(outcome.illegal, None, "{name}");
            let [first, bad, last] = &outcome.opinions[..] else { panic!("{:?}", outcome.opinions) };
            assert!(first.fault.is_none() && last.fault.is_none());
            assert_eq!(bad.ruling, None, "{name}");
            let fault = bad.fault.as_ref().unwrap();
            assert_eq!(fault.kind, kind, "{name}: {fault:?}");
            assert!(fault.message.contains(expected), "{name}: {fault:?}");
        }
    }
}

#[test]
fn trap_keeps_the_draft() {
    check("trap", FaultKind::Trap, "unreachable");
}

#[test]
fn panic_is_reported_with_its_message() {
    check("panic", FaultKind::Trap, "panicked at src/lib.rs:7");
}

#[test]
fn spinning_policy_runs_out_of_fuel() {
    check("spin", FaultKind::Fuel, "fuel");
}

#[test]
fn hoarding_policy_exceeds_its_memory() {
    check("hoard", FaultKind::Memory, "bytes of memory, over 16777216");
}

#[test]
fn endless_recursion_runs_out_of_stack() {
    check("recurse", FaultKind::Stack, "stack");
}

#[test]
fn answer_with_a_dangling_list_is_refused() {
    check("lie", FaultKind::Answer, "");
}

#[test]
fn answer_with_an_unknown_case_is_refused() {
    check("babble", FaultKind::Answer, "");
}

#[test]
fn refusal_is_reported() {
    check("refuse", FaultKind::Refused, "no opinion today");
}

#[test]
fn log_flood_is_cut_off() {
    check("flood-log", FaultKind::Log, "more than 1000 log lines in one call");
}

#[test]
fn huge_answer_is_refused() {
    check("huge-answer", FaultKind::Answer, "");
    check("long-answer", FaultKind::Answer, "");
}

#[test]
fn table_growth_counts_as_memory() {
    check("grow-table", FaultKind::Memory, "table elements, over 10000");
}

/// Kept out at the door: what never starts, cannot be configured, or keeps state.
#[test]
fn endless_start_is_refused() {
    let limits = Limits { configure: Duration::from_millis(50), ..Limits::default() };
    let short = Settings { limits, ..settings() };
    let check = |name: &str, expected: &str| {
        let dropped = dropped_with(short.clone(), &[("50-x.wasm", &component(name).unwrap())]);
        assert!(dropped.reason().contains(expected), "{}", dropped.reason());
    };
    check("endless-start", "failed in start: wasm trap: interrupt");
    check("spin-in-configure", "failed in configure: wasm trap: interrupt");
    check("trap-in-configure", "failed in configure: wasm trap: wasm `unreachable`");
}

#[test]
fn stateful_policy_is_refused_with_both_answers() {
    let keeper = component("keeper").unwrap();
    check_refused(&keeper, "is not pure: a new instance answers worker-1:bundled:");
    check_refused(&keeper, "I counted");
    check_refused(&keeper, "\"pass\"");
}

/// A policy with a memory that only grows is restarted when it has none left: between two restarts
/// it rules.
#[test]
fn leaking_policy_is_restarted_and_rules_again() {
    let dropped = dropped(&[("50-leaker.wasm", &component("leaker").unwrap())]);
    let mut chain = dropped.chain();
    let mut faults = Vec::new();
    for at in 0..9000 {
        let outcome = chain.rule(&kill(), &ours());
        assert_eq!(outcome.actions, [Action::TaskOom]);
        if let Some(fault) = &outcome.opinions[1].fault {
            assert_eq!(fault.kind, FaultKind::Memory, "{fault:?}");
            faults.push(at);
        }
    }
    assert_eq!(faults.len(), 2, "16 MiB last for some four thousand calls of 4 KiB: {faults:?}");
}

/// Invariant 1, where policies are concerned: the exit that is due is ruled whatever they answer.
#[test]
fn illegal_draft_becomes_the_native_default() {
    let dropped = dropped(&[("50-double.wasm", &component("double").unwrap())]);
    let mut chain = dropped.chain();
    let outcome = chain.rule(&exit(), &ours());
    assert_eq!(outcome.actions, [Action::TaskExit(None)]);
    assert!(
        outcome.illegal.as_ref().unwrap().contains("0 task-exit where exactly one is due"),
        "{outcome:?}"
    );
    let outcome = chain.rule(&kill(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom]);
    assert!(outcome.illegal.as_ref().unwrap().contains("2 task-oom"), "{outcome:?}");
}

/// Dropped alone, it is refused with this reason.
fn check_refused(bytes: &[u8], expected: &str) {
    let dropped = dropped(&[("50-x.wasm", bytes)]);
    assert!(dropped.reason().contains(expected), "{}", dropped.reason());
    assert!(dropped.reason().contains("50-x"), "{}", dropped.reason());
    assert_eq!(dropped.snapshot.policies.len(), 1, "the built-in default rules alone");
}

#[test]
fn file_that_is_not_a_policy_is_refused_with_its_reason() {
    check_refused(b"garbage", "does not begin with `\\0asm`");
    check_refused(b"\0asm garbage", "is not a WebAssembly component");
    check_refused(&wat::parse_str("(module)").unwrap(), "it is a core module");
    check_refused(
        &wat::parse_str("(component)").unwrap(),
        "does not export coroner:policy/rules@0.1.0 or coroner:policy/rules@0.2.0: it exports nothing",
    );
    let trap = component("trap").unwrap();
    check_refused(&trap[..trap.len() / 2], "is not a WebAssembly component");
}

#[test]
fn refused_configuration_names_its_keys() {
    let bytes = include_bytes!("../../../../plugins/dist/sigkill-is-oom.wasm");
    for (toml, expected) in [
        ("[config]\nassume_no_kill_request = true", "config.assume_no_kill_request: unknown key"),
        ("[config]\nassume_no_kill_requests = 'yes'", "config.assume_no_kill_requests"),
        ("[configs]", "50-x.toml: configs: is not a key"),
    ] {
        let dropped = dropped(&[("50-x.wasm", bytes), ("50-x.toml", toml.as_bytes())]);
        assert!(dropped.reason().contains(expected), "{}", dropped.reason());
    }
}
