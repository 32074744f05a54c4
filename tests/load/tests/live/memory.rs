//! What a router takes: with the default policy, with more, after a large one was compiled, and
//! after ten thousand faults.

use coroner_tests::guests::{component, large, padded};
use coroner_tests::report::print;

use super::{Fixture, sigkill_is_oom};

/// KiB of anonymous memory a daemon with the default policy may take.
const DEFAULT: u64 = 4 << 10;
/// KiB each further Rust policy may.
const EACH: u64 = 307;
/// KiB that may differ before and after something that leaves nothing behind: the unevenness of a
/// heap through which some thousand signals went, with their lines of journal and audit. A compiler
/// in the process leaves sixteen MiB.
const NOTHING: u64 = 768;
/// KiB that ten thousand faults may cost over three thousand.
const FAULTS: u64 = 1 << 10;
/// Readings; the least counts.
const READINGS: usize = 8;

/// Signals enough for every worker to have ruled.
async fn exercise(fixture: &mut Fixture) {
    for at in 0..200_u64 {
        fixture.kill(&format!("c{}", at % 20), at + 1);
    }
    fixture.dealt_with().await;
}

/// As many more that what is under way at once has been as much as it ever is.
async fn warm(fixture: &mut Fixture) {
    for _ in 0..20 {
        exercise(fixture).await;
    }
}

#[tokio::test]
async fn router_with_default_policy_stays_small() {
    let mut fixture = Fixture::start("sole", "").await;
    // Once more, from the cache: a router that runs for a year does not hold what the first start
    // left behind.
    fixture.router.stop().await.unwrap();
    fixture.router.start_again().await.unwrap();
    exercise(&mut fixture).await;
    let alone = fixture.router.memory().unwrap();
    print(format_args!(
        "default policy from cache: anonymous {} KiB, resident {} KiB",
        alone.anonymous, alone.resident
    ));
    assert!(alone.anonymous <= DEFAULT, "{alone:?}");

    let policy = sigkill_is_oom();
    for at in 0..10_usize {
        // Each of other bytes: an instance, its code and its types are all its own.
        let name = format!("{}-sigkill.wasm", 50 + at);
        fixture.router.drop_in(&name, &padded(&policy, policy.len() + 100 + at)).unwrap();
    }
    let listed = |count: usize| move |it: &serde_json::Value| it["chain"].as_array().unwrap().len() == count;
    fixture.router.wait_listed("ten more policies", listed(11)).await.unwrap();
    exercise(&mut fixture).await;
    let more = fixture.router.memory().unwrap();
    let each = more.anonymous.saturating_sub(alone.anonymous) / 10;
    print(format_args!(
        "each further Rust policy: anonymous {each} KiB; with ten resident {} KiB",
        more.resident
    ));
    assert!(each <= EACH, "{alone:?} {more:?}");

    for at in 0..10_usize {
        std::fs::remove_file(fixture.router.policies().join(format!("{}-sigkill.wasm", 50 + at))).unwrap();
    }
    fixture.router.wait_listed("the ten to be gone", listed(1)).await.unwrap();
    warm(&mut fixture).await;
    let before = fixture.router.memory().unwrap();
    let large = large(42_000).unwrap();
    print(format_args!("a component of {:.1} MB is compiled", large.len() as f64 / 1e6));
    assert!(large.len() > 10_000_000, "{}", large.len());
    fixture.router.drop_in("50-large.wasm", &large).unwrap();
    fixture.router.wait_listed("the large one", listed(2)).await.unwrap();
    exercise(&mut fixture).await;
    let with = fixture.router.memory().unwrap();
    std::fs::remove_file(fixture.router.policies().join("50-large.wasm")).unwrap();
    fixture.router.wait_listed("the large one to be gone", listed(1)).await.unwrap();
    warm(&mut fixture).await;
    let after = fixture.router.memory().unwrap();
    print(format_args!(
        "anonymous before {} KiB, with the large policy running {} KiB, after {} KiB",
        before.anonymous, with.anonymous, after.anonymous
    ));
    assert!(after.anonymous <= before.anonymous + NOTHING, "{before:?} {after:?}");
    fixture.router.stop().await.unwrap();
}

/// Guests that fault in each call.
const VICES: [&str; 12] = [
    "trap",
    "panic",
    "spin",
    "hoard",
    "recurse",
    "lie",
    "babble",
    "refuse",
    "flood-log",
    "huge-answer",
    "long-answer",
    "grow-table",
];

/// Every vice that is let in, at once, and no quarantine to hold any of them back.
#[tokio::test]
async fn ten_thousand_faults_leak_no_memory() {
    let forgiving = "quarantine.faults = 4000000000\nquarantine.burnt = \"1day\"";
    let mut fixture = Fixture::start("sole", forgiving).await;
    for (at, vice) in VICES.iter().enumerate() {
        fixture.router.drop_in(&format!("{}-{vice}.wasm", 50 + at), &component(vice).unwrap()).unwrap();
    }
    let all = |it: &serde_json::Value| it["chain"].as_array().unwrap().len() == VICES.len() + 1;
    fixture.router.wait_listed("every vice", all).await.unwrap();
    let mut total = 0;
    let mut round = async |fixture: &mut Fixture| {
        for at in 0..50 {
            total += 1;
            fixture.kill(&format!("c{at}"), total);
        }
        fixture.dealt_with().await;
    };
    let mut faults = async |fixture: &mut Fixture, wanted: u64| loop {
        round(fixture).await;
        let list = fixture.router.request(&["policy", "list"]).unwrap();
        let of = |it: &serde_json::Value| -> u64 {
            it["faults"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
        };
        let so_far: u64 = list["chain"].as_array().unwrap().iter().map(of).sum();
        if so_far >= wanted {
            // What those that hoard still hold differs from one round to the next, by some MiB.
            let mut least = fixture.router.memory().unwrap();
            for _ in 0..READINGS {
                round(fixture).await;
                let now = fixture.router.memory().unwrap();
                least = if now.anonymous < least.anonymous { now } else { least };
            }
            return (so_far, least);
        }
    };
    let (few, early) = faults(&mut fixture, 3000).await;
    let (many, late) = faults(&mut fixture, 13_000).await;
    print(format_args!(
        "anonymous after {few} faults {} KiB, after {many} {} KiB",
        early.anonymous, late.anonymous
    ));
    assert!(late.anonymous <= early.anonymous + FAULTS, "{early:?} {late:?}");
    let list = fixture.router.request(&["policy", "list"]).unwrap();
    for (vice, it) in VICES.iter().zip(&list["chain"].as_array().unwrap()[1..]) {
        let kind = match *vice {
            "trap" | "panic" => "trap",
            "spin" => "fuel",
            "hoard" | "grow-table" => "memory",
            "recurse" => "stack",
            "refuse" => "refused",
            "flood-log" => "log",
            _ => "answer",
        };
        let faults = it["faults"].as_object().unwrap();
        assert_eq!(faults.keys().collect::<Vec<_>>(), [kind], "{vice}: {faults:?}");
    }
    fixture.router.stop().await.unwrap();
}
