//! What a proxy makes possible: kill requests are seen, and a policy's status is what CRI shows, over a restart of containerd.

use std::fs;

use coroner_tests::binary;
use coroner_tests::report::{say, timed};
use rustix::process::{Signal, kill_process};

use crate::stand::{END, Mode, Stand, alone};
use coroner_tests::containerd::{STOCK, Version, WRAPPED};

#[tokio::test]
async fn a_ruled_status_is_shown_and_stays_over_a_restart_of_containerd() {
    let _turn = alone().await;
    let _timed = timed("a_ruled_status_is_shown_and_stays_over_a_restart_of_containerd");
    let mut stand = Stand::start(Mode::Proxy).await.unwrap();
    drop_in(&stand, "50-exit-code-map", "exit-code-map", "[[config.map]]\nfrom = 0\nto = 137\n").await;
    let pod = stand.cri.run_pod_as(&stand.containerd, "mapped", WRAPPED).await.unwrap();
    let container = stand.cri.run(&pod, "mapped", 32, "exit 0").await.unwrap();
    let (first, last) = stand.cri.readings(&container, END).await.unwrap();
    say(format_args!("exit 0, mapped: first {first}, final {last}"));
    assert_eq!((first.code, last.code), (137, 137));
    // One that ends while containerd is away: the proxy is asked by the next one. containerd 1.7 and later lose what has ended meanwhile, whoever's
    // its shim is: nobody asks then.
    let other = stand.cri.run_pod_as(&stand.containerd, "stock", STOCK).await.unwrap();
    let away = [
        stand.cri.run(&other, "stock-away", 32, "await exit 0").await.unwrap(),
        stand.cri.run(&pod, "away", 32, "await exit 0").await.unwrap(),
    ];
    let mut pids = Vec::new();
    for container in &away {
        container.wait_printed("waiting", END).await.unwrap();
        pids.push(stand.cri.pid(container).await.unwrap());
    }
    stand.containerd.stop().await.unwrap();
    for pid in pids {
        kill_process(pid, Signal::USR1).unwrap();
    }
    stand.ruled("exited", &away[1]).await.unwrap();
    stand.containerd.start_again().await.unwrap();
    assert_eq!(stand.cri.first_reading(&container, END).await.unwrap().code, 137);
    let stock = stand.cri.first_reading(&away[0], END).await.unwrap();
    let ours = stand.cri.first_reading(&away[1], END).await.unwrap();
    say(format_args!("ended while containerd was away: stock {stock}, mapped {ours}"));
    let is_lost = stock.reason == "Unknown";
    assert!(!is_lost || stand.containerd.version() >= Version(1, 7, 0), "containerd 1.6 does not lose it");
    assert_eq!(ours.code, if is_lost { 255 } else { 137 });
}

#[tokio::test]
async fn the_first_reading_waits_for_a_router_that_is_slow() {
    let _turn = alone().await;
    let _timed = timed("the_first_reading_waits_for_a_router_that_is_slow");
    let mut stand = Stand::start(Mode::Proxy).await.unwrap();
    let mut containers = Vec::new();
    let mut pids = Vec::new();
    for (name, handler) in [("slow", WRAPPED), ("stock", STOCK)] {
        let pod = stand.cri.run_pod_as(&stand.containerd, name, handler).await.unwrap();
        let container = stand.cri.run(&pod, name, 32, "await self 64").await.unwrap();
        container.wait_printed("waiting", END).await.unwrap();
        pids.push(stand.cri.pid(&container).await.unwrap());
        containers.push(container);
    }
    stand.router.signal(Signal::STOP).unwrap();
    for pid in pids {
        kill_process(pid, Signal::USR1).unwrap();
    }
    let (mut cri, router) = (stand.cri.clone(), &stand.router);
    let goes_on = async {
        // Long enough for an exit that is not held, and that was begun later.
        cri.first_reading(&containers[1], END).await.unwrap();
        router.signal(Signal::CONT).unwrap();
    };
    let (first, ()) = tokio::join!(stand.cri.first_reading(&containers[0], END), goes_on);
    let first = first.unwrap().to_string();
    say(format_args!("first reading while the router sleeps: {first}"));
    assert_eq!(first, "OOMKilled/137");
}

#[tokio::test]
async fn a_kill_is_told_from_a_stop_and_from_an_oom() {
    let _turn = alone().await;
    let _timed = timed("a_kill_is_told_from_a_stop_and_from_an_oom");
    let mut stand = Stand::start(Mode::Proxy).await.unwrap();
    drop_in(&stand, "50-kill-attribution", "kill-attribution", "").await;
    let pod = stand.cri.run_pod_as(&stand.containerd, "killed", WRAPPED).await.unwrap();
    let oom = stand.cri.run(&pod, "oom", 32, "self 64").await.unwrap();
    let stubborn = stand.cri.run(&pod, "stubborn", 32, "await exit 0").await.unwrap();
    let own = stand.cri.run(&pod, "own", 32, "kill 9").await.unwrap();
    stubborn.wait_printed("waiting", END).await.unwrap();
    // It does not listen to SIGTERM: as pid 1 without a handler it is not even told.
    stand.cri.stop(&stubborn, 1).await.unwrap();
    for (container, expect) in [(&oom, "oom"), (&stubborn, "requested"), (&own, "self")] {
        stand.cri.first_reading(container, END).await.unwrap();
        let ruled = stand.ruled("exited", container).await.unwrap();
        let reports: Vec<&serde_json::Value> = ruled["actions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|action| !action["report"].is_null())
            .map(|action| &action["report"])
            .collect();
        say(format_args!("{}: {}", container.name, reports[0]["message"]));
        assert_eq!(reports[0]["reason"], expect, "{ruled:#}");
    }
}

/// Drops a bundled policy in, and waits until it rules.
pub(crate) async fn drop_in(stand: &Stand, name: &str, policy: &str, config: &str) {
    let bytes = fs::read(binary::bundled_policy(policy).unwrap()).unwrap();
    if !config.is_empty() {
        fs::write(stand.router.policies().join(name).with_extension("toml"), config).unwrap();
    }
    stand.router.drop_in(&format!("{name}.wasm"), &bytes).unwrap();
    let there = |listed: &serde_json::Value| {
        listed["chain"].as_array().is_some_and(|chain| chain.iter().any(|it| it["policy"] == name))
    };
    stand.router.wait_listed(name, there).await.unwrap();
}
