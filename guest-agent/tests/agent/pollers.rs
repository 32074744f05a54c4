//! A poller of Kata's call beside a faster router: what the router has acknowledged stays available
//! to the poller.

use std::time::{Duration, Instant};

use coroner_proto::kata::GetOOMEventRequest;
use coroner_proto::kata_ttrpc::AgentServiceClient;
use ttrpc::asynchronous::Client;
use ttrpc::context;

use crate::harness::{Agent, Reader, Scratch, TIMEOUT, remove};

/// More than the agent keeps of containers that are gone and acknowledged.
const GONE: usize = 20;

async fn poller(agent: &Agent) -> AgentServiceClient {
    AgentServiceClient::new(Client::new(coroner_transport::connect(&agent.address).await.unwrap()))
}

async fn poll(poller: &AgentServiceClient, patience: Duration) -> ttrpc::Result<String> {
    let request = GetOOMEventRequest::default();
    let event = poller.get_oom_event(context::with_duration(patience), &request).await?;
    Ok(event.container_id)
}

/// Has a container die by an OOM kill, acknowledges that, and removes its cgroup.
async fn die(reader: &mut Reader, scratch: &Scratch, id: &str) {
    let mut child = reader.run(scratch, id, 16 << 20, "exec tail /dev/zero").await;
    assert!(!reader.until_exit(id).await.kills.is_empty());
    child.wait().unwrap();
    remove(&scratch.folder(id));
    reader.ack = reader.after;
    reader.next(0).await;
}

#[tokio::test]
async fn kills_retained_for_poller_after_router_acknowledged() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let first = poller(&agent).await;
    poll(&first, Duration::from_millis(200)).await.expect_err("nothing was killed yet");
    let ids: Vec<String> = (0..GONE).map(|at| format!("gone-{at}")).collect();
    for id in &ids {
        die(&mut reader, &scratch, id).await;
    }
    let begun = Instant::now();
    while reader.snapshot().await.iter().any(|it| it.id == ids[0]) {
        assert!(begun.elapsed() < TIMEOUT, "the agent evicts what is acknowledged");
    }
    // Half over one link, which closes before its last answer is acknowledged; the rest over the
    // next.
    for id in &ids[..GONE / 2] {
        assert_eq!(poll(&first, TIMEOUT).await.unwrap(), *id);
    }
    drop(first);
    let second = poller(&agent).await;
    let mut received = Vec::new();
    while received.last() != ids.last() {
        received.push(poll(&second, TIMEOUT).await.unwrap());
    }
    assert!(received.ends_with(&ids[GONE / 2 - 1..]), "{received:?}");
}
