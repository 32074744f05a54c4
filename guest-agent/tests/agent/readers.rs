//! Readers: several at once, reconnected, or with the cursor of another stream.

use std::time::{Duration, Instant};

use coroner_proto::agent::HelloRequest;

use crate::harness::{Agent, Reader, Scratch, limit};

const LIMIT: u64 = 16 << 20;

#[tokio::test]
async fn two_readers_receive_everything() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let (mut one, mut two) = (agent.reader().await, agent.reader().await);
    let mut child = one.run(&scratch, "both", LIMIT, "tail /dev/zero; exit 1").await;
    let first_reports = one.until_exit("both").await;
    child.wait().unwrap();
    // The first acknowledges everything before the second has read any.
    one.ack = one.after;
    assert!(one.next(0).await.is_empty());
    let second_reports = two.until_exit("both").await;
    assert_eq!(first_reports.kill_before_exit(), second_reports.kill_before_exit());
    assert_eq!(first_reports.exited(), second_reports.exited());
}

#[tokio::test]
async fn reconnected_reader_resumes_from_cursor() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    reader.run(&scratch, "first", LIMIT, "exit 1").await.wait().unwrap();
    reader.until_exit("first").await;
    let (stream, after) = (reader.stream.clone(), reader.after);
    drop(reader);
    let mut other = agent.reader().await;
    other.run(&scratch, "second", LIMIT, "exit 2").await.wait().unwrap();
    let client = agent.client().await;
    let mut back = Reader { client, stream, after, ack: 0, seen: Vec::new() };
    assert_eq!(back.until_exit("second").await.exited().status, Some(2));
    assert!(back.seen.iter().all(|it| it.container_id == "second"), "what was read is not sent again");
}

#[tokio::test]
async fn reader_of_other_stream_starts_over_without_ack() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    reader.run(&scratch, "only", LIMIT, "exit 1").await.wait().unwrap();
    reader.until_exit("only").await;
    let request = coroner_proto::agent::NextSignalsRequest {
        stream_id: "of an agent before".to_owned(),
        after_seq: 1_000_000,
        ack_seq: 1_000_000,
        ..Default::default()
    };
    let answer = reader.client.next_signals(limit(), &request).await.unwrap();
    assert_eq!(answer.stream_id, reader.stream);
    assert_eq!(answer.signals.len(), 1);
}

#[tokio::test]
async fn call_without_signals_ends_at_its_wait() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let begun = Instant::now();
    assert!(reader.next(300).await.is_empty());
    assert!((Duration::from_millis(300)..Duration::from_secs(10)).contains(&begun.elapsed()));
    reader.after = u64::MAX;
    assert!(reader.next(0).await.is_empty());
}

#[tokio::test]
async fn stop_ends_waiting_calls_and_removes_socket() {
    let scratch = Scratch::new();
    let mut agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let coroner_transport::Address::Unix(path) = agent.address.clone() else { panic!("a path") };
    let begun = Instant::now();
    let waiting = tokio::join!(reader.next(60_000), async {
        // The call has reached the agent once a call on another link is answered.
        let client = agent.client().await;
        client.hello(limit(), &HelloRequest::default()).await.unwrap();
        tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
    });
    assert!(waiting.0.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!path.exists());
}

#[tokio::test]
async fn hello_lists_capabilities_of_this_machine() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let hello = agent.client().await.hello(limit(), &HelloRequest::default()).await.unwrap();
    assert_eq!(hello.capabilities, ["kill-count", "memory", "exit-status", "victim"]);
    assert_eq!(hello.cgroup_version, 1);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(hello.boot_id, boot.trim());
    assert_eq!(hello.stream_id.len(), 36);
}
