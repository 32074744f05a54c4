//! The bundled policies as committed and as rebuilt on this machine rule alike: on the bundled
//! recording, and on random signals.

use std::path::Path;

use coroner_core::ruling::Ruling;
use coroner_sources::replay;
use coroner_testkit::random;
use proptest::test_runner::{Config, TestRunner};

use super::dropped;

#[test]
fn rebuilt_policies_rule_as_the_committed_ones() {
    let rebuilt = std::env::var("CORONER_REBUILT_PLUGINS")
        .expect("CORONER_REBUILT_PLUGINS names the rebuilt policies: run `cargo xtask test --only policies`");
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/dist");
    let recording = replay::read(include_str!("../../../../router/cli/src/demo/recording.jsonl")).unwrap();
    for name in
        ["causal-oom", "exit-code-map", "kill-attribution", "kubernetes", "memory-taken", "sigkill-is-oom"]
    {
        let from = |folder: &Path| {
            let bytes = std::fs::read(folder.join(name).with_extension("wasm")).unwrap();
            // Switched off, the built-in default leaves the one that is compared alone.
            let dropped = dropped(&[("50-compared.wasm", &bytes), ("00-kubernetes.toml", b"mode = 'off'")]);
            assert_eq!((dropped.snapshot.policies.len(), &dropped.refused[..]), (1, &[][..]));
            dropped.chain()
        };
        let old = std::cell::RefCell::new(from(&committed));
        let new = std::cell::RefCell::new(from(Path::new(&rebuilt)));
        let rule = |signal: &_, case: &_| -> [Vec<Option<Ruling>>; 2] {
            [&old, &new].map(|chain| {
                let outcome = chain.borrow_mut().rule(signal, case);
                outcome.opinions.into_iter().map(|opinion| opinion.ruling).collect()
            })
        };
        for envelope in &recording {
            let case = coroner_core::case::Case::new(&envelope.origin.known);
            let [old, new] = rule(&envelope.signal, &case);
            assert_eq!(old, new, "{name}");
        }
        let mut runner =
            TestRunner::new(Config { cases: 10_000, failure_persistence: None, ..Config::default() });
        runner
            .run(&(random::signal(), random::case()), |(signal, case)| {
                let [old, new] = rule(&signal, &case);
                proptest::prop_assert_eq!(old, new);
                Ok(())
            })
            .unwrap();
    }
}
