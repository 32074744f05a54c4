//! What a proxy makes possible: kill requests are seen, and a policy's status is what CRI shows,
//! over a restart of containerd.

use std::fs;

use coroner_tests::binary;
use coroner_tests::report::{print, timed};
use rustix::process::{Signal, kill_process};

use super::fixture::{END, Fixture, Mode, alone};
use coroner_tests::containerd::{STOCK, Version, WRAPPED};

#[tokio::test]
async fn ruled_status_is_shown_and_survives_a_containerd_restart() {
    let _turn = alone().await;
    let _timed = timed("ruled_status_is_shown_and_survives_a_containerd_restart");
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    drop_in(&fixture, "50-exit-code-map", "exit-code-map", "[[config.map]]\nfrom = 0\nto = 137\n").await;
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "mapped", WRAPPED).await.unwrap();
    let container = fixture.cri.run(&pod, "mapped", 32, "exit 0").await.unwrap();
    let (first, last) = fixture.cri.readings(&container, END).await.unwrap();
    print(format_args!("exit 0, mapped: first {first}, final {last}"));
    assert_eq!((first.code, last.code), (137, 137));
    // One that ends while containerd is away: the next containerd queries the proxy. containerd 1.7
    // and later lose what has ended meanwhile, under any shim: no query comes then.
    let other = fixture.cri.run_pod_as(&fixture.containerd, "stock", STOCK).await.unwrap();
    let away = [
        fixture.cri.run(&other, "stock-away", 32, "await exit 0").await.unwrap(),
        fixture.cri.run(&pod, "away", 32, "await exit 0").await.unwrap(),
    ];
    let mut pids = Vec::new();
    for container in &away {
        container.wait_printed("waiting", END).await.unwrap();
        pids.push(fixture.cri.pid(container).await.unwrap());
    }
    fixture.containerd.stop().await.unwrap();
    for pid in pids {
        kill_process(pid, Signal::USR1).unwrap();
    }
    fixture.ruled("exited", &away[1]).await.unwrap();
    fixture.containerd.start_again().await.unwrap();
    assert_eq!(fixture.cri.first_reading(&container, END).await.unwrap().code, 137);
    let stock = fixture.cri.first_reading(&away[0], END).await.unwrap();
    let ours = fixture.cri.first_reading(&away[1], END).await.unwrap();
    print(format_args!("ended while containerd was away: stock {stock}, mapped {ours}"));
    let is_lost = stock.reason == "Unknown";
    assert!(!is_lost || fixture.containerd.version() >= Version(1, 7, 0), "containerd 1.6 does not lose it");
    assert_eq!(ours.code, if is_lost { 255 } else { 137 });
}

#[tokio::test]
async fn first_reading_waits_for_a_slow_router() {
    let _turn = alone().await;
    let _timed = timed("first_reading_waits_for_a_slow_router");
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    let mut containers = Vec::new();
    let mut pids = Vec::new();
    for (name, handler) in [("slow", WRAPPED), ("stock", STOCK)] {
        let pod = fixture.cri.run_pod_as(&fixture.containerd, name, handler).await.unwrap();
        let container = fixture.cri.run(&pod, name, 32, "await self 64").await.unwrap();
        container.wait_printed("waiting", END).await.unwrap();
        pids.push(fixture.cri.pid(&container).await.unwrap());
        containers.push(container);
    }
    fixture.router.signal(Signal::STOP).unwrap();
    for pid in pids {
        kill_process(pid, Signal::USR1).unwrap();
    }
    let (mut cri, router) = (fixture.cri.clone(), &fixture.router);
    let goes_on = async {
        // Long enough for an exit that is not held, and that was begun later.
        cri.first_reading(&containers[1], END).await.unwrap();
        router.signal(Signal::CONT).unwrap();
    };
    let (first, ()) = tokio::join!(fixture.cri.first_reading(&containers[0], END), goes_on);
    let first = first.unwrap().to_string();
    print(format_args!("first reading while the router sleeps: {first}"));
    assert_eq!(first, "OOMKilled/137");
}

#[tokio::test]
async fn kill_is_distinguished_from_a_stop_and_an_oom() {
    let _turn = alone().await;
    let _timed = timed("kill_is_distinguished_from_a_stop_and_an_oom");
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    drop_in(&fixture, "50-kill-attribution", "kill-attribution", "").await;
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "killed", WRAPPED).await.unwrap();
    let oom = fixture.cri.run(&pod, "oom", 32, "self 64").await.unwrap();
    let stubborn = fixture.cri.run(&pod, "stubborn", 32, "await exit 0").await.unwrap();
    let own = fixture.cri.run(&pod, "own", 32, "kill 9").await.unwrap();
    stubborn.wait_printed("waiting", END).await.unwrap();
    // It ignores SIGTERM: as pid 1 without a handler it does not even receive it.
    fixture.cri.stop(&stubborn, 1).await.unwrap();
    for (container, expect) in [(&oom, "oom"), (&stubborn, "requested"), (&own, "self")] {
        fixture.cri.first_reading(container, END).await.unwrap();
        let ruled = fixture.ruled("exited", container).await.unwrap();
        let reports: Vec<&serde_json::Value> = ruled["actions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|action| !action["report"].is_null())
            .map(|action| &action["report"])
            .collect();
        print(format_args!("{}: {}", container.name, reports[0]["message"]));
        assert_eq!(reports[0]["reason"], expect, "{ruled:#}");
    }
}

/// Drops a bundled policy in, and waits until it rules.
pub(crate) async fn drop_in(fixture: &Fixture, name: &str, policy: &str, config: &str) {
    let bytes = fs::read(binary::bundled_policy(policy).unwrap()).unwrap();
    if !config.is_empty() {
        fs::write(fixture.router.policies().join(name).with_extension("toml"), config).unwrap();
    }
    fixture.router.drop_in(&format!("{name}.wasm"), &bytes).unwrap();
    let there = |listed: &serde_json::Value| {
        listed["chain"].as_array().is_some_and(|chain| chain.iter().any(|it| it["policy"] == name))
    };
    fixture.router.wait_listed(name, there).await.unwrap();
}
