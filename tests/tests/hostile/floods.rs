//! A guest that always has more to send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coroner_proto::agent::{
    Container, NextSignalsResponse, OomKill, Pressure, PressureOf, SnapshotResponse, signal::Event,
};
use coroner_tests::report::print;
use coroner_tests::wait::until_quiet;

use super::fakes::{FakeAgent, serve};
use super::fixture::Fixture;
use super::{STREAM, agent_signal, answer, exit, kill};

#[tokio::test(flavor = "multi_thread")]
async fn pressure_flood_delays_no_kill_or_exit_of_its_guest() {
    const PAIRS: usize = 20;
    /// Answers full of pressure before each pair.
    const BETWEEN: u64 = 12;
    let mut fixture = Fixture::start("a flood of pressure", "").await;
    let (sent, sent_at) = tokio::sync::watch::channel(Vec::new());
    let _bad = fixture.bad("bad", move |mut link| {
        let sent = sent.clone();
        async move {
            let mut call = link.up(STREAM).await?;
            let mut seq = 0;
            let mut next = || {
                seq += 1;
                seq
            };
            for round in 0.. {
                let pressure = Pressure { of: PressureOf::PRESSURE_OF_MEMORY.into(), ..Pressure::default() };
                let flood = (0..250).map(|_| agent_signal(next(), "own", Event::Pressure(pressure.clone())));
                let mut signals: Vec<_> = flood.collect();
                if round % BETWEEN == BETWEEN - 1 && sent.borrow().len() < PAIRS {
                    let container = format!("own-{}", sent.borrow().len());
                    signals.extend([kill(next(), &container), exit(next(), &container)]);
                    sent.send_modify(|all| all.push(Instant::now()));
                }
                link.answer(&call, &answer(signals)).await?;
                call = link.next().await?;
            }
            Ok(())
        }
    });
    let mut worst = Duration::ZERO;
    for at in 0..PAIRS {
        let got = fixture.published.wait(&format!("own-{at}"), |it| !it.exits.is_empty()).await;
        assert_eq!(got.ooms, 1, "the kill went first");
        worst = worst.max(sent_at.borrow()[at].elapsed());
    }
    print(format_args!(
        "the flooding guest's own kill and exit: at most {:.1} ms",
        worst.as_secs_f64() * 1000.0
    ));
    fixture.beside(Duration::from_secs(3)).await;
    let seen = fixture.guest("bad");
    let count = |key: &str| seen[key].as_u64().unwrap();
    assert_eq!((count("refused"), count("links")), (0, 1), "{seen:#}");
    assert!(count("held-back") > 10 * count("signals"), "{seen:#}");
    for at in 0..PAIRS {
        let got = fixture.published.of(&format!("own-{at}"));
        assert_eq!((got.ooms, got.exits.len()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_with_endless_losses_or_backlog_is_rate_limited() {
    const WALK: Duration = Duration::from_secs(3);
    let mut fixture = Fixture::start("always lost, always more", "").await;
    let answers = |lost: u64, appeared: u64| NextSignalsResponse {
        stream_id: STREAM.to_owned(),
        lost,
        appeared,
        ..NextSignalsResponse::default()
    };
    let requests = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let snapshots = Arc::new(AtomicUsize::new(0));
    let mut guests = Vec::new();
    for (name, count) in ["lost", "more", "nothing"].into_iter().zip(&requests) {
        let (count, snapshots) = (Arc::clone(count), Arc::clone(&snapshots));
        guests.push(fixture.bad(name, move |mut link| {
            let (count, snapshots) = (Arc::clone(&count), Arc::clone(&snapshots));
            async move {
                let mut call = link.up(STREAM).await?;
                for round in 1_u64.. {
                    if call.method == "Snapshot" {
                        snapshots.fetch_add(1, Ordering::SeqCst);
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
    fixture.beside(WALK).await;
    let [lost, more, nothing] = requests.map(|it| it.load(Ordering::SeqCst));
    print(format_args!(
        "requests for signals: {lost} with endless losses, {more} with endless backlog, {nothing} with no signals"
    ));
    // Five a second of each, and what the machine takes beside.
    let snapshots = snapshots.load(Ordering::SeqCst);
    assert!(lost <= 40 && snapshots <= 80, "{lost}, {snapshots} snapshots");
    // No faster than frames are read of a guest.
    assert!(more.max(nothing) <= 1000 + 250 * 8, "{more} {nothing}");
    assert!(fixture.router.logged("dropped signals").unwrap() <= 20);
    for name in ["lost", "more", "nothing"] {
        let seen = fixture.guest(name);
        assert_eq!((&seen["links"], &seen["state"]), (&1.into(), &"up".into()), "{seen:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_guest_cannot_fill_the_queue_to_containerd() {
    const KILLS: u64 = 1500;
    /// Of one guest's signals so many are in the router at once.
    const IN_LINE: u64 = 512;
    let mut fixture = Fixture::start("a line to containerd", "").await;
    fixture.published.refuse(true);
    let eager = Arc::new(FakeAgent::default());
    let _server = serve(&eager, &fixture.router.path("eager.sock")).await;
    for seq in 1..=KILLS {
        let kill = OomKill { total: seq, added: 1, ..OomKill::default() };
        eager.emit(agent_signal(seq, "own", Event::OomKill(kill)));
    }
    fixture.follow("eager");
    eager.read(1).await;
    let read = async || Ok(*eager.read.lock().unwrap());
    let read = until_quiet(Duration::from_secs(1), read).await.unwrap();
    assert!((256..=IN_LINE).contains(&read), "{read} signals were read");
    fixture.published.refuse(false);
    eager.acked(KILLS).await;
    fixture.published.wait("own", |it| it.ooms >= KILLS).await;
    fixture.beside(Duration::from_secs(1)).await;
}
