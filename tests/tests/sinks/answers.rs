//! What becomes of documents by what a receiver answers, or does not.

use coroner_tests::scratch::Scratch;
use serde_json::{Value, json};

use super::fixture::{Fixture, lines, named, subjects};
use super::receiver::{Answer, Receiver};

/// A webhook for reports of the one topic, in clear.
pub(crate) fn hook(port: u16, more: &str) -> String {
    format!(
        r#"
        [[sink]]
        name = "hook"
        type = "webhook"
        url = "http://127.0.0.1:{port}/events"
        dead_letter = "@DIR@/dead.jsonl"
        {more}
        [[route]]
        topics = ["app-crash"]
        sinks = ["hook"]
        "#
    )
}

async fn fixture(answers: &[Answer], more: &str) -> (Receiver, Fixture) {
    let receiver = Receiver::clear(answers).await;
    let fixture = Fixture::reporting(Scratch::new().unwrap(), &hook(receiver.address.port(), more)).await;
    (receiver, fixture)
}

fn dropped(sink: &Value) -> Value {
    sink["dropped"].clone()
}

#[tokio::test]
async fn retryable_answers_are_retried() {
    let answers = [(500, None), (503, Some("1")), (429, Some("0")), (408, None), (425, None)];
    let (mut receiver, mut fixture) = fixture(&answers, "").await;
    fixture.exit("c1");
    let first = receiver.post().await.json();
    for _ in 0..answers.len() {
        assert_eq!(receiver.post().await.json(), first, "the same event, the same id");
    }
    let delivered = &fixture.delivered("hook", 1).await[0];
    assert_eq!((&delivered["outcome"], &delivered["attempts"]), (&json!("acked"), &json!(6)));
    assert_eq!(delivered["error"], "425 Too Early: so it is", "the last error");
    let sink = fixture.sink("hook", |_| true).await;
    assert_eq!((&sink["delivered"], &sink["failed"]), (&json!(1), &json!(5)));
    assert_eq!(dropped(&sink), json!({"full": 0, "deadline": 0, "refused": 0, "unwritten": 0, "stopped": 0}));
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn refused_document_is_dead_lettered_and_not_retried() {
    let (mut receiver, mut fixture) = fixture(&[(400, None), (301, None)], "").await;
    fixture.exits("c", 3).await;
    receiver.documents(3).await;
    let delivered = fixture.delivered("hook", 3).await;
    let outcomes: Vec<_> = delivered.iter().map(|it| (it["outcome"].clone(), it["error"].clone())).collect();
    assert_eq!(
        outcomes,
        [
            (json!("dropped"), json!("refused: 400 Bad Request: so it is")),
            (json!("dropped"), json!("refused: 301 Moved Permanently: so it is")),
            (json!("acked"), json!(null)),
        ]
    );
    let letters = lines(&fixture.router.path("dead.jsonl"));
    assert_eq!(subjects(letters.iter().map(|it| &it["document"])), ["c-0", "c-1"]);
    assert_eq!((&letters[0]["sink"], &letters[0]["because"]), (&json!("hook"), &json!("refused")));
    assert_eq!(letters[0]["error"], "400 Bad Request: so it is");
    assert!(letters[0]["at-ms"].is_u64());
    assert!(receiver.is_quiet());
    let sink = fixture.sink("hook", |it| it["dropped"]["refused"] == 2).await;
    assert_eq!((&sink["delivered"], &sink["failed"]), (&json!(1), &json!(2)));
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_the_deadline() {
    let (mut receiver, mut fixture) = fixture(&[(503, Some("3600"))], "deadline = \"1s\"").await;
    fixture.exit("c1");
    receiver.documents(1).await;
    let sink = fixture.sink("hook", |it| it["dropped"]["deadline"] == 1).await;
    // Without the hour there would have been tries in that second.
    assert_eq!((&sink["failed"], receiver.is_quiet()), (&json!(1), true));
    let letter = &lines(&fixture.router.path("dead.jsonl"))[0];
    assert_eq!(
        (&letter["because"], &letter["error"]),
        (&json!("deadline"), &json!("503 Service Unavailable: so it is"))
    );
    fixture.exit("c2");
    receiver.documents(1).await;
    fixture.sink("hook", |it| it["delivered"] == 1).await;
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn undeliverable_without_dead_letter_file_is_counted_apart() {
    let gone = Receiver::clear(&[]).await;
    let port = gone.address.port();
    gone.end().await;
    let sinks = hook(port, "deadline = \"200ms\"").replace("@DIR@/dead", "@DIR@/no-such-folder/dead");
    let mut fixture = Fixture::reporting(Scratch::new().unwrap(), &sinks).await;
    fixture.exits("c", 2).await;
    let sink = fixture.sink("hook", |it| it["dropped"]["unwritten"] == 2).await;
    assert_eq!(dropped(&sink), json!({"full": 0, "deadline": 0, "refused": 0, "unwritten": 2, "stopped": 0}));
    let delivered = fixture.delivered("hook", 2).await;
    assert!(
        delivered[0]["error"].as_str().unwrap().contains("refused"),
        "the last error is recorded: {}",
        delivered[0]
    );
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn documents_queued_over_a_restart_come_in_ordered_batches() {
    let (mut receiver, mut fixture) = fixture(&[], "format = \"batch\"\nbatch = 8").await;
    let address = receiver.address;
    fixture.exits("before", 1).await;
    let post = receiver.post().await;
    assert_eq!(post.header("content-type"), "application/cloudevents-batch+json");
    assert_eq!(post.json().as_array().unwrap().len(), 1);
    fixture.sink("hook", |it| it["delivered"] == 1).await;
    receiver.end().await;
    fixture.exits("during", 20).await;
    fixture.sink("hook", |it| it["failed"].as_u64() >= Some(1)).await;

    let mut receiver = Receiver::at(address, None, &[]).await;
    let mut sizes = Vec::new();
    let mut documents = Vec::new();
    while documents.len() < 20 {
        let events = receiver.post().await.json();
        let events = events.as_array().unwrap();
        sizes.push(events.len());
        documents.extend(events.iter().map(|it| it["data"].clone()));
    }
    assert_eq!(subjects(&documents), named("during", 0..20));
    assert!(sizes.iter().all(|size| *size <= 8) && sizes.len() <= 5, "{sizes:?}");
    let sink = fixture.sink("hook", |it| it["delivered"] == 21).await;
    assert_eq!(sink["dropped"]["deadline"], 0);
    fixture.router.stop().await.unwrap();
}
