//! The museum: components of every version of the policy contract rule as they did when they were
//! kept.

use std::fs;
use std::path::{Path, PathBuf};

use coroner_core::audit::{Line, Record, Ruled};
use coroner_core::ruling::{Fault, Opinion, Ruling};

use coroner_tests::guests::later_kinds;

use super::{dropped, exit, kill, ours};

fn museum(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../museum").join(version)
}

pub(super) fn recording(version: &str) -> Vec<Ruled> {
    let text = fs::read_to_string(museum(version).join("recording.jsonl")).unwrap();
    let ruled = text.lines().map(|line| match serde_json::from_str::<Line>(line).unwrap().record {
        Record::Ruled(ruled) => *ruled,
        other => panic!("{other:?}"),
    });
    ruled.collect()
}

/// An opinion without its fuel, which changes with the engine.
fn stated(opinion: &Opinion) -> (&str, &str, &Option<Ruling>, &Option<Fault>) {
    (&opinion.policy, &opinion.digest, &opinion.ruling, &opinion.fault)
}

fn check(version: &str) {
    let mut files = Vec::new();
    for entry in fs::read_dir(museum(version)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "wasm") {
            files.push((path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()));
        }
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let dropped = dropped(&files);
    assert_eq!(dropped.refused, []);
    let mut chain = dropped.chain();
    let mut decided = 0;
    for (at, kept) in recording(version).iter().enumerate() {
        // The native default may change, what a component rules on a draft may not.
        let outcome = chain.rule_on(kept.draft.clone(), &kept.signal, &kept.case);
        let now: Vec<_> = outcome.opinions.iter().map(stated).collect();
        let then: Vec<_> = kept.rulings.iter().map(stated).collect();
        assert_eq!(now, then, "line {}", at + 1);
        assert_eq!(outcome.actions, kept.actions, "line {}", at + 1);
        assert_eq!(outcome.illegal, kept.illegal, "line {}", at + 1);
        decided += now.iter().filter(|(.., ruling, _)| matches!(ruling, Some(Ruling::Decide(_)))).count();
    }
    // Recordings of signals that no policy rules on would prove nothing.
    assert!(decided > 300, "{decided} rulings");
}

#[test]
fn kept_components_of_0_1_rule_as_recorded() {
    check("0.1.0");
}

#[test]
fn component_with_a_later_kind_loads_and_rules() {
    let dropped = dropped(&[("50-later.wasm", &later_kinds().unwrap())]);
    assert_eq!(dropped.refused, []);
    let mut chain = dropped.chain();
    let mut ruled = |signal| {
        let outcome = chain.rule(&signal, &ours());
        outcome
            .opinions
            .into_iter()
            .filter(|it| it.policy == "50-later")
            .map(|it| it.ruling)
            .collect::<Vec<_>>()
    };
    assert_eq!(ruled(exit()), [Some(Ruling::Pass)]);
    assert_eq!(ruled(kill()), [], "a kind that it does not want");
}
