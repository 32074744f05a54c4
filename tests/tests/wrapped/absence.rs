//! Invariant 10: a wrapped pod lives and dies normally with the router dead, hung or absent, in
//! both modes.

use anyhow::Result;
use coroner_tests::cri::{Cri, Pod};
use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::report::{print, timed};
use rustix::process::Signal;

use super::fixture::{END, Fixture, Mode, alone};
use coroner_tests::containerd::WRAPPED;

/// A pod's whole life: it starts, runs, one container stops and one ends by itself, and all is
/// deleted.
async fn life(cri: &mut Cri, pod: &Pod, name: &str) -> Result<(String, String)> {
    let ends = cri.run(pod, &format!("{name}-ends"), 32, "exit 3").await?;
    let stops = cri.run(pod, &format!("{name}-stops"), 32, "pause").await?;
    let ended = cri.first_reading(&ends, END).await?;
    stops.wait_printed("paused", END).await?;
    cri.stop(&stops, 10).await?;
    let stopped = cri.first_reading(&stops, END).await?;
    for container in [&ends, &stops] {
        cri.remove(container).await?;
    }
    Ok((ended.to_string(), stopped.to_string()))
}

async fn absences(mode: Mode) {
    let mut fixture = Fixture::start(mode).await.unwrap();
    let expect = ("Error/3".to_owned(), "Error/15".to_owned());

    // Absent when the pod starts: it is a stock pod, and publishes as one.
    fixture.router.kill().unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "absent", WRAPPED).await.unwrap();
    assert_eq!(life(&mut fixture.cri, &pod, "absent").await.unwrap(), expect, "absent");
    let killed = fixture.cri.run(&pod, "killed", 32, "await self 64").await.unwrap();
    killed.wait_printed("waiting", END).await.unwrap();
    let pid = fixture.cri.pid(&killed).await.unwrap();
    rustix::process::kill_process(pid, Signal::USR1).unwrap();
    for topic in [OOM, EXIT] {
        events.wait_for(topic, &killed.id, 1, END).await.unwrap();
    }
    fixture.cri.remove_pod(&pod).await.unwrap();

    // Hung when the pod starts.
    fixture.router.start_again().await.unwrap();
    fixture.router.signal(Signal::STOP).unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "hung", WRAPPED).await.unwrap();
    assert_eq!(life(&mut fixture.cri, &pod, "hung").await.unwrap(), expect, "hung");
    fixture.cri.remove_pod(&pod).await.unwrap();
    fixture.router.signal(Signal::CONT).unwrap();

    // There when it starts; then hung, and then killed.
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "left", WRAPPED).await.unwrap();
    let while_hung = fixture.cri.run(&pod, "while-hung", 32, "await self 64").await.unwrap();
    let while_dead = fixture.cri.run(&pod, "while-dead", 32, "await child 64 1 0").await.unwrap();
    for container in [&while_hung, &while_dead] {
        container.wait_printed("waiting", END).await.unwrap();
    }
    let pids = [fixture.cri.pid(&while_hung).await.unwrap(), fixture.cri.pid(&while_dead).await.unwrap()];
    fixture.router.signal(Signal::STOP).unwrap();
    rustix::process::kill_process(pids[0], Signal::USR1).unwrap();
    let first = fixture.cri.first_reading(&while_hung, END).await.unwrap();
    print(format_args!("{}: first reading while the router hangs: {first}", mode.name()));
    assert_eq!(first.code, 137);
    fixture.router.signal(Signal::CONT).unwrap();
    fixture.router.kill().unwrap();
    rustix::process::kill_process(pids[1], Signal::USR1).unwrap();
    let first = fixture.cri.first_reading(&while_dead, END).await.unwrap();
    print(format_args!("{}: first reading while the router is dead: {first}", mode.name()));
    assert_eq!(first.code, 1);
    fixture.router.start_again().await.unwrap();

    // What happened meanwhile is published, once or under one id.
    for container in [&while_hung, &while_dead] {
        events.wait_for(EXIT, &container.id, 1, END).await.unwrap();
        fixture.ruled("exited", container).await.unwrap();
    }
    let last = fixture.cri.final_readings(&[while_hung.clone(), while_dead.clone()]).await.unwrap();
    print(format_args!("{}: in the end {} and {}", mode.name(), last[0], last[1]));
    assert_eq!((last[0].to_string().as_str(), last[1].code), ("OOMKilled/137", 1));
    for container in [&while_hung, &while_dead] {
        let audit = fixture.router.audit().unwrap();
        let ids: std::collections::BTreeSet<String> = audit
            .iter()
            .filter(|it| super::fixture::is_ruled(it, "exited", &container.id))
            .map(|it| it["signal"]["id"].to_string())
            .collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
    }
    fixture.cri.remove_pod(&pod).await.unwrap();
}

#[tokio::test]
async fn invariant_10_wrapped_pods_live_and_die_without_the_router() {
    let _turn = alone().await;
    let _timed = timed("invariant_10_wrapped_pods_live_and_die_without_the_router");
    absences(Mode::Wrapped).await;
}

#[tokio::test]
async fn invariant_10_proxied_pods_live_and_die_without_the_router() {
    let _turn = alone().await;
    let _timed = timed("invariant_10_proxied_pods_live_and_die_without_the_router");
    absences(Mode::Proxy).await;
}
