//! Bad guests: whatever one does, the draft before it stands, the audit names the fault, and the next signal is ruled.

use coroner::ruling::{Action, FaultKind};
use coroner_tests::guests::component;

use super::{dropped, exit, kill, kubernetes, ours};

/// `name` behind the default policy: its fault is of this kind, says this, and changes nothing; twice, then others rule.
fn check(name: &str, kind: FaultKind, says: &str) {
    let file = format!("50-{name}.wasm");
    let dropped = dropped(&[(&file, &component(name).unwrap()), ("90-kubernetes.wasm", &kubernetes())]);
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
            assert!(fault.message.contains(says), "{name}: {fault:?}");
        }
    }
}

#[test]
fn a_trap_leaves_the_draft() {
    check("trap", FaultKind::Trap, "unreachable");
}

#[test]
fn a_panic_is_told_with_its_text() {
    check("panic", FaultKind::Trap, "panicked at src/lib.rs:7");
}

#[test]
fn a_spinner_burns_its_fuel_and_no_more() {
    check("spin", FaultKind::Fuel, "fuel");
}

#[test]
fn a_hoarder_is_named() {
    check("hoard", FaultKind::Memory, "bytes of memory, over 16777216");
}

#[test]
fn endless_recursion_runs_out_of_stack() {
    check("recurse", FaultKind::Stack, "stack");
}

#[test]
fn a_list_that_is_not_there_is_no_answer() {
    check("lie", FaultKind::Answer, "");
}

#[test]
fn a_case_that_does_not_exist_is_no_answer() {
    check("babble", FaultKind::Answer, "");
}

#[test]
fn a_refusal_is_told() {
    check("refuse", FaultKind::Refused, "no opinion today");
}

/// Invariant 1, where policies are concerned: the exit that is due is ruled whatever they answer.
#[test]
fn an_illegal_draft_becomes_the_native_default() {
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

/// Dropped alone, it is refused and says this.
fn check_refused(bytes: &[u8], says: &str) {
    let dropped = dropped(&[("50-x.wasm", bytes)]);
    assert!(dropped.reason().contains(says), "{}", dropped.reason());
    assert!(dropped.reason().contains("50-x"), "{}", dropped.reason());
    assert_eq!(dropped.lineup.policies.len(), 1, "the built-in default rules alone");
}

#[test]
fn what_is_no_policy_is_refused_with_its_reason() {
    check_refused(b"garbage", "does not begin with `\\0asm`");
    check_refused(b"\0asm garbage", "is no WebAssembly component");
    check_refused(&wat::parse_str("(module)").unwrap(), "it is a core module");
    check_refused(
        &wat::parse_str("(component)").unwrap(),
        "does not export coroner:policy/rules@0.1.0: it exports nothing",
    );
    let trap = component("trap").unwrap();
    check_refused(&trap[..trap.len() / 2], "is no WebAssembly component");
}

#[test]
fn a_policy_that_refuses_its_configuration_names_the_keys() {
    let bytes = include_bytes!("../../../plugins/dist/sigkill-is-oom.wasm");
    for (toml, says) in [
        ("[config]\nassume_no_kill_request = true", "config.assume_no_kill_request: unknown key"),
        ("[config]\nassume_no_kill_requests = 'yes'", "config.assume_no_kill_requests"),
        ("[configs]", "50-x.toml: TOML parse error"),
    ] {
        let dropped = dropped(&[("50-x.wasm", bytes), ("50-x.toml", toml.as_bytes())]);
        assert!(dropped.reason().contains(says), "{}", dropped.reason());
    }
}
