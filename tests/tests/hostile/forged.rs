//! Ids that are not the guest's own, or that are none.

use std::time::Duration;

use super::stand::Stand;
use super::{STREAM, answer, exit, kill};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_says_of_anothers_containers_is_refused() {
    // Nobody is at its address: its containers are its own all the same.
    let registered = r#"
        [[guest]]
        name = "registered"
        type = "agent"
        address = "unix://@DIR@/nobody.sock"
        mode = "sole"
        containers = ["web-1"]
    "#;
    let mut stand = Stand::start("forged ids", registered).await;
    let bad = stand.bad("bad", |mut link| async move {
        let asked = link.up(STREAM).await?;
        // By registration, by first claim, and one of its own.
        let mut signals = vec![kill(1, "web-1"), exit(2, "web-1"), kill(3, "own")];
        signals.extend((0..8).map(|at| exit(4 + at, &format!("good-{at}"))));
        signals.push(exit(12, "own"));
        link.answer(&asked, &answer(signals)).await?;
        link.idle().await
    });
    stand.published.wait("own", |it| it.ooms == 1 && it.exits.len() == 1).await;
    stand.beside(Duration::from_secs(2)).await;
    assert_eq!(stand.published.of("web-1").ooms, 0);
    for container in ["web-1", "good-0", "good-7"] {
        assert!(stand.published.of(container).exits.is_empty(), "{container}");
    }
    let seen = stand.guest("bad");
    assert_eq!((&seen["refused"], &seen["links"]), (&10.into(), &1.into()), "{seen:#}");
    assert_eq!(bad.links(), 1, "it costs no link");
    assert_eq!(stand.router.logged("spoke for a container that is not its own").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_with_odd_characters_are_refused_and_the_rest_of_the_answer_stands() {
    let mut stand = Stand::start("odd ids", "").await;
    let odd = ["", "a/../b", "..", "a b", "a\nINFO forged", "\u{1b}[2J", "\u{e9}", "\0"];
    let _bad = stand.bad("bad", move |mut link| async move {
        let asked = link.up(STREAM).await?;
        let long = ["x".repeat(257), "y".repeat(30_000)];
        let ids = odd.into_iter().chain(long.iter().map(String::as_str));
        let mut signals: Vec<_> = (1..).zip(ids).map(|(seq, id)| kill(seq, id)).collect();
        signals.push(exit(100, "own"));
        link.answer(&asked, &answer(signals)).await?;
        link.idle().await
    });
    stand.published.wait("own", |it| it.exits.len() == 1).await;
    stand.beside(Duration::from_secs(1)).await;
    let seen = stand.guest("bad");
    assert_eq!((&seen["refused"], &seen["state"]), (&10.into(), &"up".into()), "{seen:#}");
    assert_eq!(stand.router.logged("INFO forged").unwrap(), 0, "no id makes a line of its own");
}
