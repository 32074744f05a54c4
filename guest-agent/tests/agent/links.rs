//! Links that are not as they should be.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use coroner_agent::Options;
use coroner_proto::agent::{HelloRequest, SnapshotRequest};
use coroner_transport::Address;
use coroner_transport::limits::MAX_FRAME;

use crate::harness::{Agent, Scratch, limit};

#[tokio::test]
async fn oversized_frame_closes_only_its_own_link() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let client = agent.client().await;
    let Address::Unix(path) = &agent.address else { panic!("a path") };
    let mut stranger = UnixStream::connect(path).unwrap();
    let mut header = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes().to_vec();
    header.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
    stranger.write_all(&header).unwrap();
    assert_eq!(stranger.read(&mut [0; 1]).unwrap(), 0, "closed before the body");
    client.hello(limit(), &HelloRequest::default()).await.expect("the other link lives");
}

#[tokio::test]
async fn socket_is_private_and_second_agent_refused() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let Address::Unix(path) = &agent.address else { panic!("a path") };
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let options = Options { listen: vec![agent.address.clone()], ..Options::default() };
    let second = coroner_agent::run(options, || panic!("it must not start"), std::future::pending()).await;
    assert!(second.unwrap_err().to_string().contains("in use"));
    agent
        .client()
        .await
        .snapshot(limit(), &SnapshotRequest::default())
        .await
        .expect("the first still serves");
}

#[tokio::test]
async fn stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let options = Options { listen: vec![Address::Unix(path.clone())], ..Options::default() };
    coroner_agent::run(options.clone(), || (), std::future::ready(())).await.unwrap();
    // A file that is not a socket is left alone.
    std::fs::write(&path, "text").unwrap();
    let error = coroner_agent::run(options, || (), std::future::ready(())).await.unwrap_err();
    assert!(error.to_string().contains("is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
}
