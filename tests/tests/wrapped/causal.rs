//! The policy `causal-oom` behind the wrapper: an OOM only where a kill can be what ended the container.

use coroner_tests::containerd::WRAPPED;
use coroner_tests::report::{say, timed};

use crate::proxied::drop_in;
use crate::stand::{END, Mode, Stand, alone};

async fn causal(mode: Mode) {
    let mut stand = Stand::start(mode).await.unwrap();
    drop_in(&stand, "50-causal-oom", "causal-oom", "").await;
    let pod = stand.cri.run_pod_as(&stand.containerd, "causal", WRAPPED).await.unwrap();
    // A child is killed, and its parent ends well ten seconds later; another's ends by SIGTERM then; a third's fails at once.
    let well = stand.cri.run(&pod, "well", 32, "child 64 0 10000").await.unwrap();
    let stopped = stand.cri.run(&pod, "stopped", 32, "child 64 0 60000").await.unwrap();
    let fails = stand.cri.run(&pod, "fails", 32, "child 64 1 0").await.unwrap();
    for container in [&well, &stopped, &fails] {
        let kill = stand.ruled("oom-kill", container).await.unwrap();
        assert_eq!(
            kill["actions"],
            serde_json::json!([]),
            "the kill is in the audit, and not told yet: {kill:#}"
        );
    }
    let (_, reading) = stand.cri.readings(&fails, END).await.unwrap();
    assert_eq!(reading.to_string(), "OOMKilled/1");
    let (first, reading) = stand.cri.readings(&well, END).await.unwrap();
    say(format_args!("{}: ended well ten seconds after a kill: {first}, {reading}", mode.name()));
    assert_eq!(
        (first.to_string(), reading.to_string()),
        ("Completed/0".to_owned(), "Completed/0".to_owned())
    );
    stand.cri.stop(&stopped, 1).await.unwrap();
    let (_, reading) = stand.cri.readings(&stopped, END).await.unwrap();
    say(format_args!("{}: stopped ten seconds after a kill: {reading}", mode.name()));
    assert_eq!(reading.reason, "Error", "{reading}");

    // The pod's own limit is hit by one, and its neighbour ends beside it.
    let pod = stand.cri.run_pod_as(&stand.containerd, "limited", WRAPPED).await.unwrap();
    pod.limit_memory(48).unwrap();
    let sibling = stand.cri.run(&pod, "sibling", 64, "await exit 0").await.unwrap();
    sibling.wait_printed("waiting", END).await.unwrap();
    let hog = stand.cri.run(&pod, "hog", 256, "self 128").await.unwrap();
    let (_, reading) = stand.cri.readings(&hog, END).await.unwrap();
    assert_eq!(reading.to_string(), "OOMKilled/137");
    let pid = stand.cri.pid(&sibling).await.unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let (_, reading) = stand.cri.readings(&sibling, END).await.unwrap();
    say(format_args!("{}: the neighbour of one that hit the pod's limit: {reading}", mode.name()));
    assert_eq!(reading.to_string(), "Completed/0");
}

#[tokio::test]
async fn only_a_kill_that_ended_it_makes_a_wrapped_container_oom_killed() {
    let _turn = alone().await;
    let _timed = timed("only_a_kill_that_ended_it_makes_a_wrapped_container_oom_killed");
    causal(Mode::Wrapped).await;
}

#[tokio::test]
async fn only_a_kill_that_ended_it_makes_a_proxied_container_oom_killed() {
    let _turn = alone().await;
    let _timed = timed("only_a_kill_that_ended_it_makes_a_proxied_container_oom_killed");
    causal(Mode::Proxy).await;
}
