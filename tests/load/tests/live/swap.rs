//! Policies come and go under load: each signal is ruled once, in its order, by one chain.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use coroner_proto::agent::{Exited, signal::Event as AgentEvent};
use coroner_tests::guests::{bomb, component, padded, wrong_world};
use coroner_tests::report::print;
use serde_json::Value;

use super::fakes::Event;
use super::{ASSUME, Fixture, sigkill_is_oom};

/// Containers, and signals of each.
const CONTAINERS: usize = 500;
const EACH: usize = 1200;
/// Changes of the directory, one while each batch is under way.
const CHANGES: usize = 60;
const BATCH: usize = CONTAINERS * EACH / CHANGES;
/// A change is taken in, or refused, by then.
const DEADLINE: Duration = Duration::from_secs(30);

/// Every third change is a bad one: its name, its bytes, and what is logged of it.
fn bad() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = component("passer").unwrap();
    vec![
        ("truncated", good[..good.len() / 2].to_vec(), "is not a WebAssembly component"),
        (
            "wrong-world",
            wrong_world().unwrap(),
            "does not export coroner:policy/rules@0.1.0 or coroner:policy/rules@0.2.0",
        ),
        ("trap-in-configure", component("trap-in-configure").unwrap(), "failed in configure"),
        ("not-wasm", b"#!/bin/sh".to_vec(), "is not a WebAssembly component: it does not begin"),
        ("bomb", bomb().unwrap(), "does not compile within"),
        ("impure", component("keeper").unwrap(), "is not pure"),
    ]
}

#[tokio::test]
async fn invariant_8_sixty_swaps_under_load_are_whole_and_lossless() {
    // Time enough for a good policy on a busy machine, and not for the bomb.
    let mut fixture = Fixture::start("sole", "compile.time = \"4s\"").await;
    let bad = bad();
    let mut swaps = 0;
    let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ledger: HashMap<String, usize> = HashMap::new();
    let begun = Instant::now();
    for change in 0..CHANGES {
        fixture.agent.signals.lock().unwrap().clear();
        for at in change * BATCH..(change + 1) * BATCH {
            let (container, turn) = (at % CONTAINERS, at / CONTAINERS);
            // An exec's exit: containerd gets each under its own name.
            let exited = Exited { pid: Some(7), is_init: Some(false), status: Some(3), ..Exited::default() };
            fixture.emit(&format!("c{container}"), Some(format!("e{turn}")), AgentEvent::Exited(exited));
        }
        if change % 3 == 2 {
            let (name, logged) = spoil(&fixture, change / 3, &bad);
            let times = refusals.entry(name).or_default();
            *times += 1;
            fixture.router.wait_logged(&logged, 1, DEADLINE).await.unwrap();
        } else {
            swaps += 1;
            improve(&fixture, swaps);
            let swapped = format!("generation={} ", swaps + 1);
            fixture.router.wait_logged(&swapped, 1, DEADLINE).await.unwrap();
        }
        for _ in 0..BATCH {
            take(fixture.took.recv().await.unwrap(), &mut ledger);
        }
    }
    fixture.dealt_with().await;
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(ledger.len(), CONTAINERS);
    assert!(ledger.values().all(|next| *next == EACH), "every exit of every container was published");
    let status = fixture.router.request(&["status"]).unwrap();
    assert_eq!(status["sinks"][1]["dropped"]["full"], 0, "the audit is whole: {status:#}");
    let audit = fixture.router.path("audit.jsonl");
    fixture.router.stop().await.unwrap();
    let generations = audited(&audit);
    print(format_args!(
        "{} signals of {CONTAINERS} containers in {took:.1} s ({:.0} a second), {CHANGES} changes of the directory",
        CONTAINERS * EACH,
        (CONTAINERS * EACH) as f64 / took
    ));
    print(format_args!("{swaps} swaps; {} generations ruled; refused: {refusals:?}", generations.len()));
    print("lost 0, published twice 0, out of order 0, ruled by no generation or by two 0");
    assert_eq!(generations.values().sum::<usize>(), CONTAINERS * EACH);
    assert_eq!(refusals.values().sum::<usize>(), CHANGES / 3);
    assert!(generations.len() > swaps / 2, "signals were ruled while chains changed: {generations:?}");
}

/// An exec's exit in its container's order.
fn take(event: Event, ledger: &mut HashMap<String, usize>) {
    let Event::Exit { container, id, status: 3, .. } = event else { panic!("{event:?}") };
    let next = ledger.entry(container).or_default();
    assert_eq!(id, format!("e{next}"), "neither lost, nor repeated, nor overtaken");
    *next += 1;
}

/// A good change, each other than the one before: a policy comes, is configured, put in the shadow,
/// switched off; another is replaced.
fn improve(fixture: &Fixture, turn: usize) {
    let set = |toml: &str| fixture.router.drop_in("50-sigkill-is-oom.toml", toml.as_bytes()).unwrap();
    match turn % 4 {
        1 if turn == 1 => fixture.router.drop_in("50-sigkill-is-oom.wasm", &sigkill_is_oom()).unwrap(),
        1 => set("mode = 'shadow'"),
        2 => set(ASSUME),
        3 => {
            let passer = component("passer").unwrap();
            let other = padded(&passer, passer.len() + 50 + turn);
            fixture.router.drop_in("60-passer.wasm", &other).unwrap();
        }
        _ => set("mode = 'off'"),
    }
}

/// Drops in a bad change, in turn, under a name of its own, so that each is logged once. Returns
/// what is logged of it.
fn spoil(fixture: &Fixture, turn: usize, bad: &[(&'static str, Vec<u8>, &str)]) -> (&'static str, String) {
    let name = format!("7{}-bad-{turn}", turn % 10);
    let file = fixture.router.policies().join(format!("{name}.wasm"));
    if turn % 7 == 6 {
        // Written in place and sparse: a stray disk image.
        File::create(&file).unwrap().set_len(200 << 20).unwrap();
        return ("200 MB", format!("{name}.wasm is over 33554432 bytes"));
    }
    let (vice, bytes, reason) = &bad[turn % 7];
    // A section of nothing, of another length each time: the same bytes twice would not be tried
    // twice.
    let bytes = if bytes.starts_with(b"\0asm") && *vice != "truncated" {
        padded(bytes, bytes.len() + 50 + turn)
    } else {
        bytes.clone()
    };
    fixture.router.drop_in(&format!("{name}.wasm"), &bytes).unwrap();
    (vice, format!("policy {name} {reason}"))
}

/// Signals by the generation that ruled them; each once.
fn audited(path: &std::path::Path) -> BTreeMap<u64, usize> {
    let mut generations = BTreeMap::new();
    let mut ruled = std::collections::HashSet::new();
    for line in BufReader::new(File::open(path).unwrap()).lines() {
        let line = line.unwrap();
        if !line.starts_with(r#"{"v":5,"record":"ruled""#) {
            continue;
        }
        let record: Value = serde_json::from_str(&line).unwrap();
        assert!(ruled.insert(record["signal"]["id"].as_str().unwrap().to_owned()), "ruled twice: {line}");
        *generations.entry(record["generation"].as_u64().unwrap()).or_default() += 1;
    }
    generations
}
