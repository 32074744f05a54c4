//! Guests that begin something and do not end it, or end it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;

use super::link::{frame, hello};
use super::stand::Stand;

/// More than a call may take.
const LONG: Duration = Duration::from_secs(7);

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_end_what_he_began_is_given_up() {
    let mut stand = Stand::start("half frames and slow bytes", "").await;
    let answer = {
        let payload = hello("slow").write_to_bytes().unwrap();
        ttrpc::proto::Response { payload, ..Default::default() }.write_to_bytes().unwrap()
    };
    let mute = stand.bad("mute", |mut link| async move { link.silent().await });
    let header = stand.bad("half-a-header", |mut link| async move {
        link.0.write_all(&[0, 0, 0]).await?;
        link.silent().await
    });
    let body = stand.bad("half-a-body", |mut link| async move {
        let call = link.asked().await?;
        link.0.write_all(&frame(call.stream, 2, &[0; 60_000])[..30_000]).await?;
        link.silent().await
    });
    let slow = stand.bad("a-byte-a-second", move |mut link| {
        let answer = answer.clone();
        async move {
            let call = link.asked().await?;
            for byte in frame(call.stream, 2, &answer) {
                link.0.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            link.silent().await
        }
    });
    let once = stand.bad("hello-and-no-more", |mut link| async move {
        let call = link.asked().await?;
        link.answer(&call, &hello("once")).await?;
        link.silent().await
    });
    stand.beside(LONG).await;
    for (name, call, guest) in [
        ("mute", "Hello", mute),
        ("half-a-header", "Hello", header),
        ("half-a-body", "Hello", body),
        ("a-byte-a-second", "Hello", slow),
        ("hello-and-no-more", "Snapshot", once),
    ] {
        let given_up = |it: &serde_json::Value| it["problem"].as_str().is_some_and(|it| it.starts_with(call));
        let seen = stand.wait_guest(name, "a guest to be given up", given_up).await;
        assert_eq!(seen["links"], 0, "{seen:#}");
        assert!((1..=4).contains(&guest.links()), "{name}: {} links", guest.links());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_each_link_at_once_is_dialled_less_and_less_and_fills_no_log() {
    let mut stand = Stand::start("links that end at once", "").await;
    let closed = stand.bad("closed", |_| async move { Ok(()) });
    let count = Arc::new(AtomicUsize::new(0));
    let another = stand.bad("another-each-time", move |mut link| {
        let stream = format!("s{}", count.fetch_add(1, Ordering::SeqCst));
        async move { link.up(&stream).await.map(drop) }
    });
    stand.beside(LONG).await;
    assert!((4..=15).contains(&closed.links()), "{} links", closed.links());
    // Sixty cuts heal at once.
    assert!((61..=75).contains(&another.links()), "{} links", another.links());
    let said = stand.router.logged("agent link").unwrap();
    assert!(said <= 30, "{said} lines");
    assert_eq!(stand.router.logged("too many words").unwrap(), 1);
}
