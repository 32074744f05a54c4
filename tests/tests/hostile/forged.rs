//! Ids that are not the guest's own, or that are none.

use std::time::Duration;

use super::fixture::Fixture;
use super::{STREAM, answer, exit, kill};

#[tokio::test(flavor = "multi_thread")]
async fn signals_of_another_guests_containers_are_refused() {
    // Its address has no listener: its containers are its own all the same.
    let registered = r#"
        [[guest]]
        name = "registered"
        type = "agent"
        address = "unix://@DIR@/nobody.sock"
        mode = "sole"
        containers = ["web-1"]
    "#;
    let mut fixture = Fixture::start("forged ids", registered).await;
    let bad = fixture.bad("bad", |mut link| async move {
        let call = link.up(STREAM).await?;
        // By registration, by first claim, and one of its own.
        let mut signals = vec![kill(1, "web-1"), exit(2, "web-1"), kill(3, "own")];
        signals.extend((0..8).map(|at| exit(4 + at, &format!("good-{at}"))));
        signals.push(exit(12, "own"));
        link.answer(&call, &answer(signals)).await?;
        link.idle().await
    });
    fixture.published.wait("own", |it| it.ooms == 1 && it.exits.len() == 1).await;
    fixture.beside(Duration::from_secs(2)).await;
    assert_eq!(fixture.published.of("web-1").ooms, 0);
    for container in ["web-1", "good-0", "good-7"] {
        assert!(fixture.published.of(container).exits.is_empty(), "{container}");
    }
    let seen = fixture.guest("bad");
    assert_eq!((&seen["refused"], &seen["links"]), (&10.into(), &1.into()), "{seen:#}");
    assert_eq!(bad.links(), 1, "it costs no link");
    assert_eq!(
        fixture.router.logged("signal refused: the container does not belong to this guest").unwrap(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_with_odd_characters_are_refused_and_others_kept() {
    let mut fixture = Fixture::start("odd ids", "").await;
    let odd = ["", "a/../b", "..", "a b", "a\nINFO forged", "\u{1b}[2J", "\u{e9}", "\0"];
    let _bad = fixture.bad("bad", move |mut link| async move {
        let call = link.up(STREAM).await?;
        let long = ["x".repeat(257), "y".repeat(30_000)];
        let ids = odd.into_iter().chain(long.iter().map(String::as_str));
        let mut signals: Vec<_> = (1..).zip(ids).map(|(seq, id)| kill(seq, id)).collect();
        signals.push(exit(100, "own"));
        link.answer(&call, &answer(signals)).await?;
        link.idle().await
    });
    fixture.published.wait("own", |it| it.exits.len() == 1).await;
    fixture.beside(Duration::from_secs(1)).await;
    let seen = fixture.guest("bad");
    assert_eq!((&seen["refused"], &seen["state"]), (&10.into(), &"up".into()), "{seen:#}");
    assert_eq!(fixture.router.logged("INFO forged").unwrap(), 0, "no id makes a line of its own");
}
