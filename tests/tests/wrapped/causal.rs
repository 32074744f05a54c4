//! The policy `causal-oom` behind the wrapper: an OOM only where a kill can be what ended the
//! container.

use coroner_tests::containerd::{Version, WRAPPED};
use coroner_tests::report::{print, timed};

use super::fixture::{END, Fixture, Mode, alone};
use super::proxied::drop_in;

/// The first containerd that sets the reason OOMKilled from a task's metrics.
const BY_METRICS: Version = Version(2, 3, 0);

async fn causal(mode: Mode) {
    let mut fixture = Fixture::start(mode).await.unwrap();
    drop_in(&fixture, "50-causal-oom", "causal-oom", "").await;
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "causal", WRAPPED).await.unwrap();
    // A child is killed, and its parent ends well ten seconds later; another's ends by SIGTERM
    // then; a third's fails at once.
    let well = fixture.cri.run(&pod, "well", 32, "child 64 0 10000").await.unwrap();
    let stopped = fixture.cri.run(&pod, "stopped", 32, "child 64 0 60000").await.unwrap();
    let fails = fixture.cri.run(&pod, "fails", 32, "child 64 1 0").await.unwrap();
    for container in [&well, &stopped, &fails] {
        let kill = fixture.ruled("oom-kill", container).await.unwrap();
        assert_eq!(
            kill["actions"],
            serde_json::json!([]),
            "the kill is in the audit, and not published yet: {kill:#}"
        );
    }
    let (_, reading) = fixture.cri.readings(&fails, END).await.unwrap();
    assert_eq!(reading.to_string(), "OOMKilled/1");
    let (first, reading) = fixture.cri.readings(&well, END).await.unwrap();
    print(format_args!("{}: ended well ten seconds after a kill: {first}, {reading}", mode.name()));
    assert_eq!(
        (first.to_string(), reading.to_string()),
        ("Completed/0".to_owned(), "Completed/0".to_owned())
    );
    fixture.cri.stop(&stopped, 1).await.unwrap();
    let (_, reading) = fixture.cri.readings(&stopped, END).await.unwrap();
    print(format_args!("{}: stopped ten seconds after a kill: {reading}", mode.name()));
    // containerd 2.3 and later query the task's metrics on an exit by SIGKILL, and set the reason
    // by themselves where any kill was counted. Only a proxy's metrics agree with the policy.
    let overrides = fixture.containerd.version() >= BY_METRICS && mode == Mode::Wrapped;
    let expect = if overrides { "OOMKilled" } else { "Error" };
    assert_eq!(reading.reason, expect, "{reading}");

    // The pod's own limit is hit by one, and its neighbour ends beside it.
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "limited", WRAPPED).await.unwrap();
    pod.limit_memory(48).unwrap();
    let sibling = fixture.cri.run(&pod, "sibling", 64, "await exit 0").await.unwrap();
    sibling.wait_printed("waiting", END).await.unwrap();
    let hog = fixture.cri.run(&pod, "hog", 256, "self 128").await.unwrap();
    let (_, reading) = fixture.cri.readings(&hog, END).await.unwrap();
    assert_eq!(reading.to_string(), "OOMKilled/137");
    let pid = fixture.cri.pid(&sibling).await.unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let (_, reading) = fixture.cri.readings(&sibling, END).await.unwrap();
    print(format_args!("{}: the neighbour of one that hit the pod's limit: {reading}", mode.name()));
    assert_eq!(reading.to_string(), "Completed/0");
}

#[tokio::test]
async fn only_a_fatal_kill_makes_a_wrapped_container_oom_killed() {
    let _turn = alone().await;
    let _timed = timed("only_a_fatal_kill_makes_a_wrapped_container_oom_killed");
    causal(Mode::Wrapped).await;
}

#[tokio::test]
async fn only_a_fatal_kill_makes_a_proxied_container_oom_killed() {
    let _turn = alone().await;
    let _timed = timed("only_a_fatal_kill_makes_a_proxied_container_oom_killed");
    causal(Mode::Proxy).await;
}
