//! Modes: the ruling of a shadow is only reported; where the middle of a chain fails, the first
//! one's ruling is kept.

use coroner_core::mode::PolicyMode;
use coroner_core::ruling::{Action, FaultKind};
use coroner_core::signal::{Event, Exited, Signal};
use coroner_policy::Settings;
use coroner_tests::binary::bundled_policy;
use coroner_tests::guests::component;

use super::{Dropped, dropped, dropped_with, exit, kill, kubernetes, ours, settings, signal};

fn sigkill_is_oom() -> Vec<u8> {
    std::fs::read(bundled_policy("sigkill-is-oom").unwrap()).unwrap()
}

const ASSUME: &str = "[config]\nassume_no_kill_requests = true\n";

/// An exit that `sigkill-is-oom` rules an OOM.
fn killed() -> Signal {
    signal(Event::Exited(Exited {
        pid: Some(9),
        is_init: Some(true),
        status: Some(137),
        signal: Some(9),
        core: Some(false),
        ..Exited::unknown()
    }))
}

fn shadowed() -> Dropped {
    let toml = format!("mode = 'shadow'\n{ASSUME}");
    let dropped = dropped(&[("50-x.wasm", &sigkill_is_oom()), ("50-x.toml", toml.as_bytes())]);
    assert_eq!(dropped.refused, []);
    dropped
}

#[test]
fn shadow_changes_nothing_and_reports_its_actions() {
    let dropped = shadowed();
    let mut chain = dropped.chain();
    let outcome = chain.rule(&killed(), &ours());
    assert_eq!(outcome.actions, [Action::TaskExit(None)]);
    assert_eq!(outcome.opinions.len(), 1, "the enforced ones");
    let shadow = outcome.shadow.unwrap();
    assert_eq!(shadow.actions, [Action::TaskOom, Action::TaskExit(None)]);
    assert!(shadow.differs);
    assert_eq!(shadow.rulings[0].policy, "50-x");
    let outcome = chain.rule(&exit(), &ours());
    assert!(!outcome.shadow.unwrap().differs, "it passed");
    let outcome = chain.rule(&kill(), &ours());
    assert_eq!(outcome.shadow, None, "it does not want kills");
}

#[test]
fn policies_after_a_shadow_rule_on_its_draft_too() {
    let toml = format!("mode = 'shadow'\n{ASSUME}");
    // Behind the shadow, the default rules once more: it replaces what the shadow would have ruled.
    let dropped = dropped(&[
        ("50-x.wasm", &sigkill_is_oom()),
        ("50-x.toml", toml.as_bytes()),
        ("90-kubernetes.wasm", &kubernetes()),
    ]);
    let outcome = dropped.chain().rule(&killed(), &ours());
    assert_eq!(outcome.opinions.len(), 2);
    let shadow = outcome.shadow.unwrap();
    let names: Vec<&str> = shadow.rulings.iter().map(|it| it.policy.as_str()).collect();
    assert_eq!(names, ["50-x", "90-kubernetes"]);
    assert_eq!((shadow.actions, shadow.differs), (vec![Action::TaskExit(None)], false));
}

#[test]
fn node_dry_run_enforces_only_the_native_default() {
    let files: [(&str, &[u8]); 2] = [("50-x.wasm", &sigkill_is_oom()), ("50-x.toml", ASSUME.as_bytes())];
    let dropped = dropped_with(Settings { shadow_all: true, ..settings() }, &files);
    assert!(dropped.snapshot.policies.iter().all(|policy| policy.mode == PolicyMode::Shadow));
    let outcome = dropped.chain().rule(&killed(), &ours());
    assert_eq!((outcome.opinions.len(), outcome.actions), (0, vec![Action::TaskExit(None)]));
    let shadow = outcome.shadow.unwrap();
    assert_eq!((shadow.rulings.len(), shadow.differs), (2, true));
}

#[test]
fn policy_that_is_off_is_not_in_the_chain() {
    let dropped = dropped(&[("50-x.wasm", &sigkill_is_oom()), ("50-x.toml", b"mode = 'off'")]);
    assert_eq!((dropped.snapshot.policies.len(), dropped.refused.len()), (1, 0));
}

#[test]
fn trap_of_the_middle_policy_keeps_the_first_ruling() {
    let dropped = dropped(&[
        ("50-first.wasm", &sigkill_is_oom()),
        ("50-first.toml", ASSUME.as_bytes()),
        ("60-trap.wasm", &component("trap").unwrap()),
        ("70-passer.wasm", &component("passer").unwrap()),
    ]);
    assert_eq!(dropped.refused, []);
    let outcome = dropped.chain().rule(&killed(), &ours());
    assert_eq!(outcome.actions, [Action::TaskOom, Action::TaskExit(None)]);
    let faults: Vec<_> = outcome.opinions.iter().map(|it| it.fault.as_ref().map(|it| it.kind)).collect();
    assert_eq!(faults, [None, None, Some(FaultKind::Trap), None]);
}
