//! A receiver that accepts requests and answers nothing: its queue is bounded, and what becomes of
//! each document is recorded.

use coroner_tests::scratch::Scratch;
use serde_json::json;

use super::answers::hook;
use super::fixture::{Fixture, lines, named, subjects};
use super::receiver::Receiver;

/// One document is under way, four wait, five are dropped; returns those that came in the end.
async fn overflow(which: &str) -> Vec<String> {
    let mut receiver = Receiver::clear(&[]).await;
    let more = format!("queue = 4\noverflow = \"{which}\"\ntimeout = \"60s\"");
    let sinks = hook(receiver.address.port(), &more);
    let mut fixture = Fixture::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    fixture.exits("c", 1).await;
    let mut documents = receiver.documents(1).await;
    fixture.exits("d", 9).await;
    let sink = fixture.sink("hook", |it| it["dropped"]["full"] == 5).await;
    assert_eq!(sink["delivered"], 0);
    let delivered = fixture.delivered("hook", 5).await;
    assert!(
        delivered.iter().all(|it| it["error"] == "the queue is full" && it["outcome"] == "dropped"),
        "{delivered:?}"
    );
    receiver.answer(true);
    documents.extend(receiver.documents(4).await);
    fixture.sink("hook", |it| it["delivered"] == 5).await;
    fixture.router.stop().await.unwrap();
    assert_eq!(
        lines(&fixture.router.path("dead.jsonl")).len(),
        0,
        "what a full queue drops is counted alone"
    );
    subjects(&documents)
}

#[tokio::test]
async fn full_queue_drops_the_newest() {
    assert_eq!(overflow("drop-newest").await, [named("c", 0..1), named("d", 0..4)].concat());
}

#[tokio::test]
async fn full_queue_drops_the_oldest_if_configured() {
    assert_eq!(overflow("drop-oldest").await, [named("c", 0..1), named("d", 5..9)].concat());
}

#[tokio::test]
async fn documents_left_at_stop_are_reported_and_dead_lettered() {
    let mut receiver = Receiver::clear(&[]).await;
    let sinks = hook(receiver.address.port(), "timeout = \"60s\"");
    let mut fixture = Fixture::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    fixture.exits("c", 3).await;
    receiver.documents(1).await;
    fixture.router.stop().await.unwrap();
    let letters = lines(&fixture.router.path("dead.jsonl"));
    assert!(letters.iter().all(|it| it["because"] == "stopped"), "{letters:?}");
    assert_eq!(subjects(letters.iter().map(|it| &it["document"])), named("c", 0..3));
    let delivered = fixture.delivered("hook", 3).await;
    assert!(
        delivered.iter().all(|it| it["error"] == "the router stopped" && it["outcome"] == "dropped"),
        "{delivered:?}"
    );
    assert_eq!(delivered[0]["topic"], json!("app-crash"));
}

#[tokio::test]
async fn slow_receiver_is_retried_after_the_timeout() {
    let mut receiver = Receiver::clear(&[]).await;
    let sinks = hook(receiver.address.port(), "timeout = \"200ms\"");
    let mut fixture = Fixture::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    fixture.exits("c", 1).await;
    let tries = receiver.documents(2).await;
    assert_eq!(tries[0], tries[1]);
    receiver.answer(true);
    let delivered = &fixture.delivered("hook", 1).await[0];
    assert_eq!((&delivered["outcome"], &delivered["error"]), (&json!("acked"), &json!("no answer in 200ms")));
    fixture.router.stop().await.unwrap();
}
