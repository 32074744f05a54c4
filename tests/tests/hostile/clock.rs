//! A guest's clock, which may show any time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coroner_proto::agent::Signal;

use super::fixture::Fixture;
use super::{STREAM, answer, exit, kill};

/// An exit's time may be so far from the router's own.
const NEAR: u64 = 61_000;

#[tokio::test(flavor = "multi_thread")]
async fn guest_clock_cannot_date_exits_into_past_or_future() {
    let mut fixture = Fixture::start("time travel", "").await;
    let now = now();
    let clocks =
        [(0, 0), (u64::MAX, u64::MAX), (5, now - 3_600_000), (4, now + 3_600_000), (u64::MAX, 1), (3, now)];
    let _bad = fixture.bad("bad", move |mut link| async move {
        let call = link.up(STREAM).await?;
        let mut signals = Vec::new();
        for (at, (boot_ns, wall_ms)) in (0..).zip(clocks) {
            // Backwards within a container too.
            let container = format!("c{at}");
            let dead = Signal { boot_ns: u64::MAX - boot_ns, ..kill(2 * at + 1, &container) };
            signals.push(dead);
            signals.push(Signal { boot_ns, wall_ms, ..exit(2 * at + 2, &container) });
        }
        link.answer(&call, &answer(signals)).await?;
        link.idle().await
    });
    for (at, clock) in clocks.iter().enumerate() {
        let got = fixture.published.wait(&format!("c{at}"), |it| it.ooms == 1 && it.exits.len() == 1).await;
        assert!(got.exits[0].abs_diff(now) <= NEAR, "{clock:?}: {got:?}");
    }
    fixture.beside(Duration::from_secs(1)).await;
    let seen = fixture.guest("bad");
    assert_eq!((&seen["refused"], &seen["links"]), (&0.into(), &1.into()), "{seen:#}");
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
