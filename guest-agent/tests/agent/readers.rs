//! Readers: more than one, gone and come back, or with a stream that is over.

use std::time::{Duration, Instant};

use coroner_proto::agent::HelloRequest;

use crate::harness::{Agent, Reader, Scratch, limit};

const LIMIT: u64 = 16 << 20;

#[tokio::test]
async fn two_readers_are_told_everything() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let (mut one, mut two) = (agent.reader().await, agent.reader().await);
    let mut child = one.run(&scratch, "both", LIMIT, "tail /dev/zero; exit 1").await;
    let one_told = one.until_exit("both").await;
    child.wait().unwrap();
    // The first deals with all of it before the second has read any.
    one.ack = one.after;
    assert!(one.next(0).await.is_empty());
    let two_told = two.until_exit("both").await;
    assert_eq!(one_told.kill_before_exit(), two_told.kill_before_exit());
    assert_eq!(one_told.exited(), two_told.exited());
}

#[tokio::test]
async fn a_reader_that_comes_back_goes_on_from_its_cursor() {
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
    assert!(back.seen.iter().all(|it| it.container_id == "second"), "what was read is not told again");
}

#[tokio::test]
async fn a_reader_of_another_stream_reads_from_the_start_and_acknowledges_nothing() {
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
async fn a_call_with_nothing_to_tell_waits_no_longer_than_asked() {
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
async fn a_stop_ends_calls_that_wait_and_removes_the_socket() {
    let scratch = Scratch::new();
    let mut agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let coroner_proto::address::Address::Unix(path) = agent.address.clone() else { panic!("a path") };
    let begun = Instant::now();
    let waiting = tokio::join!(reader.next(60_000), async {
        // The call is on its way once another one has come back on the same link.
        let client = agent.client().await;
        client.hello(limit(), &HelloRequest::default()).await.unwrap();
        tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
    });
    assert!(waiting.0.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!path.exists());
}

#[tokio::test]
async fn hello_says_what_can_be_known_here() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let hello = agent.client().await.hello(limit(), &HelloRequest::default()).await.unwrap();
    assert_eq!(hello.capabilities, ["kill-count", "memory", "exit-status", "victim"]);
    assert_eq!(hello.cgroup_version, 1);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(hello.boot_id, boot.trim());
    assert_eq!(hello.stream_id.len(), 36);
}
