//! One container's signals make a policy spin: what that costs the others.

use std::time::{Duration, Instant};

use coroner_tests::guests::component;
use coroner_tests::report::print;

use super::Fixture;
use super::fakes::Event;

/// Kills of others in each half.
const KILLS: u64 = 200;

/// Latencies of signals emitted one at a time: from the agent to containerd.
async fn times(fixture: &mut Fixture, half: &str, spin: bool) -> Vec<Duration> {
    let mut times = Vec::new();
    for at in 0..KILLS {
        if spin && at % 5 == 0 {
            fixture.kill("spun", at + 1);
        }
        let container = format!("{half}{at}");
        let begun = Instant::now();
        fixture.kill(&container, 1);
        loop {
            let Some(Event::Oom { container: got, .. }) = fixture.took.recv().await else { panic!("a kill") };
            if got == container {
                break;
            }
        }
        times.push(begun.elapsed());
    }
    fixture.dealt_with().await;
    times.sort_unstable();
    times
}

#[tokio::test]
async fn spinning_policy_delays_one_call_and_is_quarantined() {
    // Fuel without end: time alone stops it.
    let endless = "fuel = 9000000000000000\nsignal_fuel = 9000000000000000\ncall = \"20ms\"\n\
                   quarantine.burnt = \"200ms\"";
    let mut fixture = Fixture::start("sole", endless).await;
    fixture.router.drop_in("50-spinner.wasm", &component("spinner").unwrap()).unwrap();
    let two = |it: &serde_json::Value| it["chain"].as_array().unwrap().len() == 2;
    fixture.router.wait_listed("the spinner", two).await.unwrap();
    let quiet = times(&mut fixture, "quiet", false).await;
    let spun = times(&mut fixture, "with", true).await;
    let at = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 100];
    for (name, times) in [("quiet", &quiet), ("beside a spinner", &spun)] {
        print(format_args!(
            "other containers' kills, {name}: p50 {:?}, p99 {:?}, longest {:?}",
            at(times, 50),
            at(times, 99),
            at(times, 100)
        ));
    }
    let inspected = fixture.router.request(&["policy", "inspect", "50-spinner"]).unwrap();
    assert!(inspected["faults"]["time"].as_u64().unwrap() > 0, "{inspected:#}");
    assert!(inspected["faults"]["quarantined"].as_u64().unwrap() > 0, "200 ms burnt: {inspected:#}");
    assert_eq!(inspected["last-faults"][0]["container"], "spun");
    fixture.router.stop().await.unwrap();
}
