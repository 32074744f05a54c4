//! A guest that has always something to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coroner_proto::agent::{
    Container, NextSignalsResponse, OomKill, Pressure, PressureOf, SnapshotResponse, signal::Event,
};
use coroner_tests::report::say;
use coroner_tests::wait::until_quiet;

use super::fakes::{FakeAgent, serve};
use super::stand::Stand;
use super::{STREAM, answer, exit, kill, told};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pressure_holds_up_no_kill_and_no_exit_of_the_same_guest() {
    const PAIRS: usize = 20;
    /// Answers full of pressure before each pair.
    const BETWEEN: u64 = 12;
    let mut stand = Stand::start("a flood of pressure", "").await;
    let (tell, told_at) = tokio::sync::watch::channel(Vec::new());
    let _bad = stand.bad("bad", move |mut link| {
        let tell = tell.clone();
        async move {
            let mut asked = link.up(STREAM).await?;
            let mut seq = 0;
            let mut next = || {
                seq += 1;
                seq
            };
            for round in 0.. {
                let pressure = Pressure { of: PressureOf::PRESSURE_OF_MEMORY.into(), ..Pressure::default() };
                let flood = (0..250).map(|_| told(next(), "own", Event::Pressure(pressure.clone())));
                let mut signals: Vec<_> = flood.collect();
                if round % BETWEEN == BETWEEN - 1 && tell.borrow().len() < PAIRS {
                    let container = format!("own-{}", tell.borrow().len());
                    signals.extend([kill(next(), &container), exit(next(), &container)]);
                    tell.send_modify(|all| all.push(Instant::now()));
                }
                link.answer(&asked, &answer(signals)).await?;
                asked = link.next().await?;
            }
            Ok(())
        }
    });
    let mut worst = Duration::ZERO;
    for at in 0..PAIRS {
        let got = stand.published.wait(&format!("own-{at}"), |it| !it.exits.is_empty()).await;
        assert_eq!(got.ooms, 1, "the kill went first");
        worst = worst.max(told_at.borrow()[at].elapsed());
    }
    say(format_args!(
        "the flooding guest's own kill and exit: at most {:.1} ms",
        worst.as_secs_f64() * 1000.0
    ));
    stand.beside(Duration::from_secs(3)).await;
    let seen = stand.guest("bad");
    let count = |key: &str| seen[key].as_u64().unwrap();
    assert_eq!((count("refused"), count("links")), (0, 1), "{seen:#}");
    assert!(count("held-back") > 10 * count("signals"), "{seen:#}");
    for at in 0..PAIRS {
        let got = stand.published.of(&format!("own-{at}"));
        assert_eq!((got.ooms, got.exits.len()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_always_loses_or_always_has_more_is_asked_at_a_walk() {
    const WALK: Duration = Duration::from_secs(3);
    let mut stand = Stand::start("always lost, always more", "").await;
    let answers = |lost: u64, appeared: u64| NextSignalsResponse {
        stream_id: STREAM.to_owned(),
        lost,
        appeared,
        ..NextSignalsResponse::default()
    };
    let asked = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut guests = Vec::new();
    for (name, count) in ["lost", "more", "nothing"].into_iter().zip(&asked) {
        let count = Arc::clone(count);
        guests.push(stand.bad(name, move |mut link| {
            let count = Arc::clone(&count);
            async move {
                let mut call = link.up(STREAM).await?;
                for round in 1_u64.. {
                    if call.method == "Snapshot" {
                        let own = Container {
                            id: "own".to_owned(),
                            kills_total: Some(round),
                            kills_before: Some(0),
                            ..Container::default()
                        };
                        let page = SnapshotResponse { containers: vec![own], ..SnapshotResponse::default() };
                        link.answer(&call, &page).await?;
                    } else {
                        count.fetch_add(1, Ordering::SeqCst);
                        let of = |vice: &str| if name == vice { round } else { 0 };
                        link.answer(&call, &answers(of("lost"), of("more"))).await?;
                    }
                    call = link.next().await?;
                }
                Ok(())
            }
        }));
    }
    stand.beside(WALK).await;
    let [lost, more, nothing] = asked.map(|it| it.load(Ordering::SeqCst));
    say(format_args!(
        "asked for signals: {lost} times who always loses, {more} who always has more, {nothing} who has nothing"
    ));
    // Five a second, and what the machine takes beside.
    assert!(lost <= 40 && more <= 40, "{lost} {more}");
    // No faster than frames are read of a guest.
    assert!(nothing <= 1000 + 250 * 8, "{nothing}");
    assert!(stand.router.logged("dropped signals").unwrap() <= 20);
    for name in ["lost", "more", "nothing"] {
        let seen = stand.guest(name);
        assert_eq!((&seen["links"], &seen["state"]), (&1.into(), &"up".into()), "{seen:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_guest_does_not_fill_the_line_to_containerd() {
    const KILLS: u64 = 1500;
    /// Of one guest's signals so many are in the router at once.
    const IN_LINE: u64 = 512;
    let mut stand = Stand::start("a line to containerd", "").await;
    stand.published.refuse(true);
    let eager = Arc::new(FakeAgent::default());
    let _server = serve(&eager, &stand.router.path("eager.sock")).await;
    for seq in 1..=KILLS {
        let kill = OomKill { total: seq, added: 1, ..OomKill::default() };
        eager.tell(told(seq, "own", Event::OomKill(kill)));
    }
    stand.follow("eager");
    eager.read(1).await;
    let read = async || Ok(*eager.read.lock().unwrap());
    let read = until_quiet(Duration::from_secs(1), read).await.unwrap();
    assert!((256..=IN_LINE).contains(&read), "{read} signals were read");
    stand.published.refuse(false);
    eager.acked(KILLS).await;
    stand.published.wait("own", |it| it.ooms >= KILLS).await;
    stand.beside(Duration::from_secs(1)).await;
}
