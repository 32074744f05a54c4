//! docs/operating/operations.md is what happens: a real container is OOM-killed, and what the page
//! shows of it is what came.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use coroner_tests::agent::Agent;
use coroner_tests::containerd::Containerd;
use coroner_tests::page::Page;
use coroner_tests::router::{Router, usual};
use coroner_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

const END: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn docs_operations_md_is_what_happens() {
    let mut page = Page::open("operating/operations.md").unwrap();
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    // Whether memory was short for long enough to be reported differs from day to day.
    let agent = Agent::start_with(containerd.cgroup(), &["--pressure", "none"]).await.unwrap();
    let toml = format!(
        r#"{}
        [[source]]
        name = "node"
        type = "agent"
        address = "{}"
        mode = "beside"
        "#,
        usual("worker-1", &containerd.socket()),
        agent.address(),
    );
    let mut router = Router::start(&toml).await.unwrap();
    let tap = "coroner tap --pod web-1";
    let mut tapping = Command::new(router.binary());
    tapping.args(tap.split(' ').skip(1)).env("CORONER_SOCKET", router.path("control.sock"));
    let mut tapping = tapping.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 8];
    tapping.stderr.as_mut().unwrap().read_exact(&mut ready).unwrap();

    let pod = cri.run_pod(&containerd, "web-1").await.unwrap();
    // It outlives its child by a second: what became of the kill is published before the exit. Its
    // child takes seconds to reach the limit: a sample of its memory is taken before.
    let container = cri.run(&pod, "app", 32, "child 64 1 1000 100").await.unwrap();
    let of = |kind: &'static str| {
        let id = container.id.clone();
        move |it: &serde_json::Value| {
            it["signal"]["target"]["container-id"] == *id && it["signal"]["event"][kind].is_object()
        }
    };
    let kill = router.wait_record("the kill", END, of("oom-kill")).await.unwrap();
    let is_its = |it: &serde_json::Value| it["record"] == "delivered" && it["id"] == kill["signal"]["id"];
    router.wait_record("its delivery", END, is_its).await.unwrap();
    router.wait_record("the exit", END, of("exited")).await.unwrap();

    let mut shown = String::new();
    let mut reader = BufReader::new(tapping.stdout.take().unwrap());
    while !shown.contains(" exited ") {
        assert!(reader.read_line(&mut shown).unwrap() > 0, "the tap ended early: {shown}");
    }
    kill_process(Pid::from_child(&tapping), Signal::INT).unwrap();
    let tapped = until("the tap to end", END, async || Ok(tapping.try_wait()?)).await.unwrap();
    page.produce(tap, &Output { status: tapped, stdout: shown.into_bytes(), stderr: Vec::new() });

    let explain = "coroner explain coroner-tests/web-1/app";
    let config = router.path("coroner.toml");
    let mut arguments: Vec<&str> = explain.split(' ').skip(1).collect();
    arguments.extend(["--config", config.to_str().unwrap()]);
    let output = router.command(&arguments).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    page.produce(explain, &output);
    page.finish().unwrap();
    router.stop().await.unwrap();
}
