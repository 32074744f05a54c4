//! Invariant 10: a wrapped pod lives and dies normally with the router dead, hung or absent, in
//! both modes.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::outcome::Reading;
use coroner_tests::report::{print, timed};
use rustix::process::{Signal, kill_process};

use super::fixture::{END, Fixture, Mode, alone, is_ruled};
use coroner_tests::containerd::WRAPPED;

/// Kills until the stock shim publishes one.
const ATTEMPTS: usize = 8;
/// A stock shim's TaskOOM comes with the exit, or never.
const OOM_AFTER_EXIT: Duration = Duration::from_secs(3);
/// Containers that are killed while the router hangs.
const HUNG: usize = 4;

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

/// Kills containers until the stock shim publishes a kill: on a busy machine it misses some. Each
/// exit must be published.
async fn publishes_as_stock(cri: &mut Cri, events: &mut Events, pod: &Pod) -> Result<bool> {
    for attempt in 0..ATTEMPTS {
        let killed = cri.run(pod, &format!("killed-{attempt}"), 32, "await self 64").await?;
        killed.wait_printed("waiting", END).await?;
        kill_process(cri.pid(&killed).await?, Signal::USR1)?;
        events.wait_for(EXIT, &killed.id, 1, END).await?;
        if events.wait_for(OOM, &killed.id, 1, OOM_AFTER_EXIT).await.is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the router serves for Prometheus.
fn metrics(fixture: &Fixture) -> String {
    let mut stream = UnixStream::connect(fixture.router.path("control.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The event ids under which the exit of a container was ruled.
fn ids_of_exit(fixture: &Fixture, container: &Container) -> BTreeSet<String> {
    let audit = fixture.router.audit().unwrap();
    let ruled = audit.iter().filter(|it| is_ruled(it, "exited", &container.id));
    ruled.map(|it| it["signal"]["id"].to_string()).collect()
}

fn list(readings: &[Reading]) -> String {
    readings.iter().map(Reading::to_string).collect::<Vec<_>>().join(", ")
}

async fn absences(mode: Mode) {
    let mut fixture = Fixture::start(mode).await.unwrap();
    let expect = ("Error/3".to_owned(), "Error/15".to_owned());

    // Absent when the pod starts: it is a stock pod, and publishes as one.
    fixture.router.kill().unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "absent", WRAPPED).await.unwrap();
    assert_eq!(life(&mut fixture.cri, &pod, "absent").await.unwrap(), expect, "absent");
    assert!(publishes_as_stock(&mut fixture.cri, &mut events, &pod).await.unwrap(), "no TaskOOM");
    fixture.router.start_again().await.unwrap();
    let status = fixture.router.request(&["status"]).unwrap();
    let listed = status["unmanaged"].as_array().unwrap();
    assert_eq!(listed.len(), 1, "one a pod, whatever starts in it: {status}");
    assert_eq!((&listed[0]["id"], &listed[0]["pod"]), (&pod.id.as_str().into(), &"absent".into()));
    let because = listed[0]["because"].as_str().unwrap();
    assert!(because.starts_with("the router does not answer: "), "{because}");
    assert!(status["degraded"].as_str().unwrap().starts_with("no source reads an agent"), "{status}");
    let metrics = metrics(&fixture);
    assert!(metrics.contains("\ncoroner_unmanaged_pods 1\n"), "{metrics}");
    assert!(metrics.contains("\ncoroner_degraded 1\n"), "{metrics}");
    fixture.cri.remove_pod(&pod).await.unwrap();
    let status = fixture.router.request(&["status"]).unwrap();
    assert_eq!(status["unmanaged"], serde_json::json!([]), "a pod that has ended");

    // Hung when the pod starts.
    fixture.router.signal(Signal::STOP).unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "hung", WRAPPED).await.unwrap();
    assert_eq!(life(&mut fixture.cri, &pod, "hung").await.unwrap(), expect, "hung");
    fixture.cri.remove_pod(&pod).await.unwrap();
    fixture.router.signal(Signal::CONT).unwrap();

    // There when it starts; then hung, and then killed. The shim's announcement is the only witness
    // of a kill here, and a stock shim misses some: one of several is enough. Each has a shim of
    // its own: while a shim publishes one event, on cgroup v1 it misses the kills of others.
    let (mut pods, mut hung) = (Vec::new(), Vec::new());
    for attempt in 0..HUNG {
        let name = format!("while-hung-{attempt}");
        pods.push(fixture.cri.run_pod_as(&fixture.containerd, &name, WRAPPED).await.unwrap());
        hung.push(fixture.cri.run(&pods[attempt], &name, 32, "await self 64").await.unwrap());
    }
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "left", WRAPPED).await.unwrap();
    let dead = fixture.cri.run(&pod, "while-dead", 32, "await child 64 1 0").await.unwrap();
    for container in hung.iter().chain([&dead]) {
        container.wait_printed("waiting", END).await.unwrap();
    }
    let dead_pid = fixture.cri.pid(&dead).await.unwrap();
    fixture.router.signal(Signal::STOP).unwrap();
    for container in &hung {
        kill_process(fixture.cri.pid(container).await.unwrap(), Signal::USR1).unwrap();
    }
    for container in &hung {
        let first = fixture.cri.first_reading(container, END).await.unwrap();
        print(format_args!("{}: first reading while the router hangs: {first}", mode.name()));
        assert_eq!(first.code, 137);
    }
    fixture.router.signal(Signal::CONT).unwrap();
    fixture.router.kill().unwrap();
    kill_process(dead_pid, Signal::USR1).unwrap();
    let first = fixture.cri.first_reading(&dead, END).await.unwrap();
    print(format_args!("{}: first reading while the router is dead: {first}", mode.name()));
    assert_eq!(first.code, 1);
    fixture.router.start_again().await.unwrap();

    // What happened meanwhile is published.
    for container in hung.iter().chain([&dead]) {
        // A shim gives an event up after some 21 s; the router queries containerd 25 s after that.
        events.wait_for(EXIT, &container.id, 1, 2 * END).await.unwrap();
    }
    fixture.ruled("exited", &dead).await.unwrap();
    let of_hung = fixture.cri.final_readings(&hung).await.unwrap();
    let of_dead = &fixture.cri.final_readings(std::slice::from_ref(&dead)).await.unwrap()[0];
    print(format_args!("{}: in the end {} and {of_dead}", mode.name(), list(&of_hung)));
    // The first router may have ruled some before it was killed, and lost the audit lines.
    assert_eq!(ids_of_exit(&fixture, &dead).len(), 1);
    for container in &hung {
        let ids = ids_of_exit(&fixture, container);
        assert!(ids.len() <= 1, "one exit has one id: {ids:?}");
    }
    assert!(of_hung.iter().all(|it| it.code == 137), "{of_hung:?}");
    assert!(of_hung.iter().any(|it| it.to_string() == "OOMKilled/137"), "{of_hung:?}");
    assert_eq!(of_dead.code, 1);
    pods.push(pod);
    for pod in &pods {
        fixture.cri.remove_pod(pod).await.unwrap();
    }
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
