//! A receiver that takes requests and answers nothing: its queue is bounded, and its fate is told.

use coroner_tests::scratch::Scratch;
use serde_json::json;

use super::answers::hook;
use super::receiver::Receiver;
use super::stand::{Stand, lines, named, whose};

/// One document is under way, four wait, five give way; gives those that came in the end.
async fn overflow(which: &str) -> Vec<String> {
    let mut receiver = Receiver::clear(&[]).await;
    let more = format!("queue = 4\noverflow = \"{which}\"\ntimeout = \"60s\"");
    let sinks = hook(receiver.address.port(), &more);
    let mut stand = Stand::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    stand.exits("c", 1).await;
    let mut documents = receiver.documents(1).await;
    stand.exits("d", 9).await;
    let sink = stand.sink("hook", |it| it["dropped"]["full"] == 5).await;
    assert_eq!(sink["delivered"], 0);
    let told = stand.delivered("hook", 5).await;
    assert!(
        told.iter().all(|it| it["error"] == "the queue is full" && it["outcome"] == "dropped"),
        "{told:?}"
    );
    receiver.answer(true);
    documents.extend(receiver.documents(4).await);
    stand.sink("hook", |it| it["delivered"] == 5).await;
    stand.router.stop().await.unwrap();
    assert_eq!(
        lines(&stand.router.path("dead.jsonl")).len(),
        0,
        "what gives way in a full queue is counted alone"
    );
    whose(&documents)
}

#[tokio::test]
async fn in_a_full_queue_the_newest_give_way() {
    assert_eq!(overflow("drop-newest").await, [named("c", 0..1), named("d", 0..4)].concat());
}

#[tokio::test]
async fn in_a_full_queue_the_oldest_give_way_if_so_configured() {
    assert_eq!(overflow("drop-oldest").await, [named("c", 0..1), named("d", 5..9)].concat());
}

#[tokio::test]
async fn what_is_left_at_a_stop_is_told_and_written_down() {
    let mut receiver = Receiver::clear(&[]).await;
    let sinks = hook(receiver.address.port(), "timeout = \"60s\"");
    let mut stand = Stand::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    stand.exits("c", 3).await;
    receiver.documents(1).await;
    stand.router.stop().await.unwrap();
    let letters = lines(&stand.router.path("dead.jsonl"));
    assert!(letters.iter().all(|it| it["because"] == "stopped"), "{letters:?}");
    assert_eq!(whose(letters.iter().map(|it| &it["document"])), named("c", 0..3));
    let told = stand.delivered("hook", 3).await;
    assert!(
        told.iter().all(|it| it["error"] == "the router stopped" && it["outcome"] == "dropped"),
        "{told:?}"
    );
    assert_eq!(told[0]["topic"], json!("app-crash"));
}

#[tokio::test]
async fn a_receiver_that_is_slow_is_tried_again() {
    let mut receiver = Receiver::clear(&[]).await;
    let sinks = hook(receiver.address.port(), "timeout = \"200ms\"");
    let mut stand = Stand::reporting(Scratch::new().unwrap(), &sinks).await;
    receiver.answer(false);
    stand.exits("c", 1).await;
    let tries = receiver.documents(2).await;
    assert_eq!(tries[0], tries[1]);
    receiver.answer(true);
    let told = &stand.delivered("hook", 1).await[0];
    assert_eq!((&told["outcome"], &told["error"]), (&json!("acked"), &json!("no answer in 200ms")));
    stand.router.stop().await.unwrap();
}
