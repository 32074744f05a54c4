//! Bad guests: whatever one does, the draft before it stands, the audit names the fault, and the next signal is ruled.

use coroner::policy::{LoadError, prepare};
use coroner::ruling::{Action, FaultKind};
use coroner_tests::guests::component;

use super::{built_in, chain, exit, host, kill, ours, taken};

/// `name` behind the default policy: its fault is of this kind, says this, and changes nothing; twice, then others rule.
fn check(name: &str, kind: FaultKind, says: &str) {
    let host = host();
    let mut policies = built_in(&host);
    policies.push(taken(&host, &format!("50-{name}"), &component(name).unwrap()));
    policies.extend(built_in(&host));
    let mut chain = chain(&host, &policies);
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
    let host = host();
    let mut policies = built_in(&host);
    policies.push(taken(&host, "50-double", &component("double").unwrap()));
    let mut chain = chain(&host, &policies);
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

#[test]
fn what_is_no_policy_is_refused_with_its_reason() {
    let host = host();
    let refused = |bytes: &[u8]| prepare(&host, "50-x", bytes, "{}".to_owned()).unwrap_err();
    let error = refused(b"\0asm garbage");
    assert!(matches!(&error, LoadError::Component { policy, .. } if policy == "50-x"), "{error}");
    let module = wat::parse_str("(module)").unwrap();
    assert!(matches!(refused(&module), LoadError::Component { .. }));
    let empty = wat::parse_str("(component)").unwrap();
    let error = refused(&empty);
    assert!(error.to_string().contains("does not export coroner:policy/rules@0.1.0"), "{error}");
    let greedy = wat::parse_str(r#"(component (import "wasi:sockets/tcp@0.2.0" (instance)))"#).unwrap();
    let error = refused(&greedy);
    assert!(error.to_string().contains("imports wasi:sockets/tcp@0.2.0"), "{error}");
    let truncated = component("trap").unwrap();
    assert!(matches!(refused(&truncated[..truncated.len() / 2]), LoadError::Component { .. }));
}

#[test]
fn a_policy_that_refuses_its_configuration_names_the_keys() {
    let host = host();
    let bytes = include_bytes!("../../../plugins/dist/sigkill-is-oom.wasm");
    let wrong = r#"{"assume_no_kill_request":true}"#;
    let error = prepare(&host, "50-sigkill-is-oom", bytes, wrong.to_owned()).unwrap_err();
    assert!(matches!(&error, LoadError::Configure { .. }), "{error}");
    assert!(error.to_string().contains("config.assume_no_kill_request"), "{error}");
    let wrong = r#"{"assume_no_kill_requests":"yes"}"#;
    let error = prepare(&host, "50-sigkill-is-oom", bytes, wrong.to_owned()).unwrap_err();
    assert!(error.to_string().contains("config.assume_no_kill_requests"), "{error}");
}
