//! A guest's clock, which says what it likes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coroner_proto::agent::Signal;

use super::stand::Stand;
use super::{STREAM, answer, exit, kill};

/// An exit's time may be so far from the router's own.
const NEAR: u64 = 61_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_dates_no_exit_into_the_past_or_the_future() {
    let mut stand = Stand::start("time travel", "").await;
    let now = now();
    let clocks =
        [(0, 0), (u64::MAX, u64::MAX), (5, now - 3_600_000), (4, now + 3_600_000), (u64::MAX, 1), (3, now)];
    let _bad = stand.bad("bad", move |mut link| async move {
        let asked = link.up(STREAM).await?;
        let mut signals = Vec::new();
        for (at, (boot_ns, wall_ms)) in (0..).zip(clocks) {
            // Backwards within a container too.
            let container = format!("c{at}");
            let dead = Signal { boot_ns: u64::MAX - boot_ns, ..kill(2 * at + 1, &container) };
            signals.push(dead);
            signals.push(Signal { boot_ns, wall_ms, ..exit(2 * at + 2, &container) });
        }
        link.answer(&asked, &answer(signals)).await?;
        link.idle().await
    });
    for at in 0..clocks.len() {
        let got = stand.published.wait(&format!("c{at}"), |it| it.ooms == 1 && it.exits.len() == 1).await;
        assert!(got.exits[0].abs_diff(now) <= NEAR, "{:?}: {got:?}", clocks[at]);
    }
    stand.beside(Duration::from_secs(1)).await;
    let seen = stand.guest("bad");
    assert_eq!((&seen["refused"], &seen["links"]), (&0.into(), &1.into()), "{seen:#}");
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
