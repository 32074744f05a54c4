//! A shim that dies cannot report the end of its containers: the router queries containerd.

use coroner_tests::containerd::WRAPPED;
use coroner_tests::report::timed;
use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{END, Fixture, Mode, alone, is_ruled};

/// A shim tries for some 21 s to publish its outbox, and the router waits for that.
const RECONCILED: std::time::Duration = END.saturating_mul(2);

/// Processes of this containerd's shims.
fn shims(fixture: &Fixture) -> Vec<Pid> {
    let folder = fixture.containerd.socket().parent().unwrap().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let shim = |process: &std::fs::DirEntry| {
        let arguments = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        let program = arguments.split('\0').next().unwrap_or_default();
        program.ends_with("containerd-shim-runc-v2") && arguments.contains(&folder)
    };
    let found = processes.filter(shim);
    found.filter_map(|it| Pid::from_raw(it.file_name().to_str()?.parse().ok()?)).collect()
}

#[tokio::test]
async fn exit_of_a_dead_shim_is_queried_from_containerd() {
    let _turn = alone().await;
    let _timed = timed("exit_of_a_dead_shim_is_queried_from_containerd");
    let mut fixture = Fixture::start(Mode::Wrapped).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "dead", WRAPPED).await.unwrap();
    let container = fixture.cri.run(&pod, "dead", 32, "pause").await.unwrap();
    let found = shims(&fixture);
    assert_eq!(found.len(), 1, "one shim for the pod");
    kill_process(found[0], Signal::KILL).unwrap();
    let ruled = |it: &serde_json::Value| is_ruled(it, "exited", &container.id);
    let exit = fixture.router.wait_record("the end", RECONCILED, ruled).await.unwrap();
    assert_eq!(exit["signal"]["event"]["exited"]["reconciled"], true, "{exit:#}");
    let because = ["unknown-because", "its shim could not tell its end"];
    assert!(exit["signal"]["attributes"].as_array().unwrap().contains(&because.into()), "{exit:#}");
    fixture.router.stop().await.unwrap();
}
