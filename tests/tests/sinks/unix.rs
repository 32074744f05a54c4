//! A unix socket with a listener that goes and returns.

use coroner_tests::scratch::Scratch;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::fixture::{Fixture, PATIENCE, named, subjects};

const SINKS: &str = r#"
    [[sink]]
    name = "mine"
    type = "unix"
    path = "@DIR@/mine.sock"
    batch = 4
    [[route]]
    topics = ["/tasks/exit"]
    sinks = ["mine"]
"#;

struct Reader {
    _listener: UnixListener,
    lines: BufReader<UnixStream>,
}

impl Reader {
    /// Listens, and waits for the router to come.
    async fn listen(fixture: &Fixture) -> Self {
        let path = fixture.router.path("mine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (stream, _) = accepted.expect("the router comes within a minute").unwrap();
        Self { _listener: listener, lines: BufReader::new(stream) }
    }

    async fn documents(&mut self, count: usize) -> Vec<Value> {
        let mut documents = Vec::new();
        while documents.len() < count {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
            assert!(read.expect("a line within a minute").unwrap() > 0, "the router hung up");
            documents.push(serde_json::from_str(&line).unwrap());
        }
        documents
    }
}

#[tokio::test]
async fn documents_without_a_listener_are_queued_in_order() {
    let mut fixture = Fixture::sole(Scratch::new().unwrap(), SINKS).await;
    fixture.exits("early", 10).await;
    fixture.sink("mine", |it| it["failed"].as_u64() >= Some(1)).await;
    let mut reader = Reader::listen(&fixture).await;
    let documents = reader.documents(10).await;
    assert_eq!(subjects(&documents), named("early", 0..10));
    let first = &documents[0];
    assert_eq!((first["topic"].as_str(), first["status"].as_u64()), (Some("/tasks/exit"), Some(3)));
    assert!(first["id"].as_str().unwrap().ends_with(":fake:early:1/0"), "{first}");
    assert!(first.get("reason").is_some_and(Value::is_null), "{first}");

    // It goes, and another comes in its place: nothing is written into the void in between.
    fixture.sink("mine", |it| it["delivered"] == 10).await;
    drop(reader);
    std::fs::remove_file(fixture.router.path("mine.sock")).unwrap();
    fixture.exits("late", 10).await;
    let mut reader = Reader::listen(&fixture).await;
    assert_eq!(subjects(&reader.documents(10).await), named("late", 0..10));
    fixture.exits("last", 1).await;
    assert_eq!(subjects(&reader.documents(1).await), named("last", 0..1));
    fixture.router.stop().await.unwrap();
    let records = fixture.router.audit().unwrap();
    let of = |it: &&Value| it["record"] == "delivered" && it["sink"] == "mine" && it["outcome"] == "acked";
    assert_eq!(records.iter().filter(of).count(), 21, "each is delivered once");
}

#[tokio::test]
async fn listener_that_does_not_read_delays_only_its_documents() {
    let sinks =
        SINKS.replace("batch = 4", "queue = 64\ndeadline = \"1s\"\ndead_letter = \"@DIR@/dead.jsonl\"");
    let mut fixture = Fixture::sole(Scratch::new().unwrap(), &sinks).await;
    let path = fixture.router.path("mine.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    // More than fits into a socket's buffer: the writer waits in the midst of a line.
    fixture.exits("c", 1000).await;
    let sink = fixture.sink("mine", |it| it["dropped"]["deadline"].as_u64() >= Some(1)).await;
    assert!(sink["dropped"]["full"].as_u64() >= Some(1), "{sink}");
    for _ in 0..1000 {
        fixture.took.recv().await.expect("containerd has every exit");
    }
    fixture.router.stop().await.unwrap();
}
