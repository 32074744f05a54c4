//! Routes by namespace, with names from a real containerd.

use coroner_tests::agent::Agent;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::NAMESPACE;
use coroner_tests::router::Router;

use super::fixture::{PATIENCE, lines};

#[tokio::test]
async fn events_are_routed_by_the_namespace_of_their_pod() {
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "routed").await.unwrap();
    let agent = Agent::start(containerd.cgroup()).await.unwrap();
    let sink = |name: &str, namespaces: &str| {
        format!(
            r#"
            [[sink]]
            name = "{name}"
            type = "jsonl"
            path = "@DIR@/{name}.jsonl"
            [[route]]
            topics = ["/tasks/*"]
            namespaces = ["{namespaces}"]
            sinks = ["{name}"]
            "#
        )
    };
    let toml = format!(
        r#"
        node = "n"
        [policies]
        cache = "@DIR@/cache"
        [control]
        socket = "@DIR@/control.sock"
        [containerd]
        address = "{}"
        [[source]]
        name = "node"
        type = "agent"
        address = "{}"
        mode = "beside"
        [[sink]]
        name = "audit"
        type = "jsonl"
        path = "@DIR@/audit.jsonl"
        {}
        {}
        "#,
        containerd.socket().display(),
        agent.address(),
        sink("ours", "coroner-*"),
        sink("others", "prod-*"),
    );
    let mut router = Router::start(&toml).await.unwrap();
    let victim = cri.run(&pod, "victim", 16, "self 64").await.unwrap();
    let record = router.wait_record("the kill", PATIENCE, |it| {
        it["record"] == "delivered" && it["topic"] == "/tasks/oom" && it["sink"] == "ours"
    });
    record.await.unwrap();
    router.stop().await.unwrap();

    let documents = lines(&router.path("ours.jsonl"));
    let target = &documents[0]["signal"]["target"];
    assert_eq!(target["container-id"], victim.id);
    assert_eq!(target["owner"]["namespace"], NAMESPACE);
    assert_eq!(lines(&router.path("others.jsonl")), [] as [serde_json::Value; 0]);
}
