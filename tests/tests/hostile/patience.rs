//! Guests that begin something and do not end it, or end it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;

use super::fixture::Fixture;
use super::link::{frame, hello};

/// More than a call may take.
const LONG: Duration = Duration::from_secs(7);

#[tokio::test(flavor = "multi_thread")]
async fn guest_that_stalls_mid_exchange_is_disconnected() {
    let mut fixture = Fixture::start("half frames and slow bytes", "").await;
    let answer = {
        let payload = hello("slow").write_to_bytes().unwrap();
        ttrpc::proto::Response { payload, ..Default::default() }.write_to_bytes().unwrap()
    };
    let mute = fixture.bad("mute", |mut link| async move { link.silent().await });
    let header = fixture.bad("half-a-header", |mut link| async move {
        link.0.write_all(&[0, 0, 0]).await?;
        link.silent().await
    });
    let body = fixture.bad("half-a-body", |mut link| async move {
        let call = link.call().await?;
        link.0.write_all(&frame(call.stream, 2, &[0; 60_000])[..30_000]).await?;
        link.silent().await
    });
    let slow = fixture.bad("a-byte-a-second", move |mut link| {
        let answer = answer.clone();
        async move {
            let call = link.call().await?;
            for byte in frame(call.stream, 2, &answer) {
                link.0.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            link.silent().await
        }
    });
    let once = fixture.bad("hello-and-no-more", |mut link| async move {
        let call = link.call().await?;
        link.answer(&call, &hello("once")).await?;
        link.silent().await
    });
    fixture.beside(LONG).await;
    for (name, call, guest) in [
        ("mute", "Hello", mute),
        ("half-a-header", "Hello", header),
        ("half-a-body", "Hello", body),
        ("a-byte-a-second", "Hello", slow),
        ("hello-and-no-more", "Snapshot", once),
    ] {
        let given_up = |it: &serde_json::Value| it["problem"].as_str().is_some_and(|it| it.starts_with(call));
        let seen = fixture.wait_guest(name, "a guest to be given up", given_up).await;
        assert_eq!(seen["links"], 0, "{seen:#}");
        assert!((1..=4).contains(&guest.links()), "{name}: {} links", guest.links());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_that_ends_each_link_is_redialled_with_backoff() {
    let mut fixture = Fixture::start("links that end at once", "").await;
    let closed = fixture.bad("closed", |_| async move { Ok(()) });
    let count = Arc::new(AtomicUsize::new(0));
    let another = fixture.bad("another-each-time", move |mut link| {
        let stream = format!("s{}", count.fetch_add(1, Ordering::SeqCst));
        async move { link.up(&stream).await.map(drop) }
    });
    fixture.beside(LONG).await;
    assert!((4..=15).contains(&closed.links()), "{} links", closed.links());
    // Sixty cuts heal at once.
    assert!((61..=75).contains(&another.links()), "{} links", another.links());
    let lines = fixture.router.logged("agent link").unwrap();
    assert!(lines <= 30, "{lines} lines");
    assert_eq!(fixture.router.logged("log rate limit reached").unwrap(), 1);
}
