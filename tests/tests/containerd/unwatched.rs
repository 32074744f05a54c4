//! Containers in cgroups that the agent does not search: the router names them, and its advice
//! makes the agent find them.

use std::time::Duration;

use anyhow::Result;
use coroner_tests::agent::Agent;
use coroner_tests::containerd::{Containerd, STOCK};
use coroner_tests::cri::Sandbox;
use coroner_tests::report::timed;
use coroner_tests::router::Router;
use coroner_tests::wait::until;
use serde_json::{Value, json};

use super::beside::{alone, config};

/// The first comparison is three seconds after the start.
const COMPARED: Duration = Duration::from_secs(30);

#[tokio::test]
async fn container_outside_of_the_roots_is_named() {
    let _turn = alone().await;
    let _timed = timed("container_outside_of_the_roots_is_named");
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let logs = containerd.logs();
    let (inside, outside) =
        (format!("{}/inside", containerd.cgroup()), format!("{}/outside", containerd.cgroup()));
    let sandbox = |name, cgroup| Sandbox { name, handler: STOCK, cgroup, logs: &logs };
    let (searched, other) = (format!("/{inside}"), format!("/{outside}"));
    cri.run_sandbox(sandbox("watched", &searched)).await.unwrap();
    let pod = cri.run_sandbox(sandbox("missed", &other)).await.unwrap();

    let agent = Agent::start(&inside).await.unwrap();
    let router = Router::start(&config(&containerd, &agent)).await.unwrap();
    let missed = json!([{
        "id": pod.id,
        "containerd-namespace": "k8s.io",
        "cgroup": format!("/{outside}/{}", pod.id),
        "root": containerd.cgroup(),
    }]);
    assert_eq!(compared(&router).await.unwrap(), missed);
    let text = String::from_utf8(router.command(&["status"]).unwrap().stdout).unwrap();
    assert!(text.contains(&format!("--root +{}", containerd.cgroup())), "{text}");
    router.wait_logged(&pod.id, 1, COMPARED).await.unwrap();

    // The advice, to the letter. It adds the default roots too.
    let advice = format!("+{}", containerd.cgroup());
    let agent = Agent::start_with(&inside, &["--root", &advice]).await.unwrap();
    let router = Router::start(&config(&containerd, &agent)).await.unwrap();
    assert_eq!(compared(&router).await.unwrap(), json!([]));
}

/// The containers of the first comparison.
async fn compared(router: &Router) -> Result<Value> {
    let known =
        async || Ok(Some(router.request(&["status"])?["unwatched"].take()).filter(|it| !it.is_null()));
    until("a comparison", COMPARED, known).await
}
