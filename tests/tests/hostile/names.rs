//! A million names, and snapshots without an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coroner::config::Mode;
use coroner::intake::Named;
use coroner::policy::{Host, Keeper, Settings};
use coroner::source::replay;
use coroner::worker::Worker;
use coroner_proto::agent::{Container, SnapshotResponse};
use coroner_tests::binary;
use coroner_tests::report::say;
use coroner_tests::wait::until;

use super::stand::Stand;
use super::{STREAM, answer, kill};

#[tokio::test(flavor = "multi_thread")]
async fn a_million_names_fill_nothing() {
    const NAMES: usize = 1_000_000;
    /// Some tell of containers with long names, which are read at a walk; some list short ones, as many as a page may hold.
    const TELLERS: usize = 2;
    const LISTERS: usize = 8;
    let mut stand = Stand::start("a million names", "").await;
    let offered = Arc::new(AtomicUsize::new(0));
    let mut guests = Vec::new();
    for at in 0..TELLERS + LISTERS {
        let offered = Arc::clone(&offered);
        guests.push(stand.bad(&format!("bad-{at}"), move |mut link| {
            let offered = Arc::clone(&offered);
            let name = move || format!("n{}", offered.fetch_add(1, Ordering::Relaxed));
            async move {
                let (mut call, mut seq, mut appeared) = (link.up(STREAM).await?, 0, 0);
                loop {
                    if call.method == "Snapshot" {
                        let containers = (0..4000).map(|_| Container { id: name(), ..Container::default() });
                        let containers = containers.collect();
                        link.answer(&call, &SnapshotResponse { containers, ..Default::default() }).await?;
                    } else {
                        let signals = (0..if at < TELLERS { 200 } else { 0 }).map(|_| {
                            seq += 1;
                            kill(seq, &format!("{}{}", "n".repeat(200), name()))
                        });
                        let mut answer = answer(signals.collect());
                        appeared += 1;
                        answer.appeared = appeared;
                        link.answer(&call, &answer).await?;
                    }
                    call = link.next().await?;
                }
            }
        }));
    }
    let enough = async || Ok((offered.load(Ordering::Relaxed) >= NAMES).then_some(()));
    let million = until("a million names to be offered", Duration::from_secs(60), enough);
    let (beside, million) = tokio::join!(stand.beside(Duration::from_secs(6)), million);
    million.unwrap();
    // After the last of them too.
    let ((), memory) = (beside, stand.router.memory().unwrap());
    say(format_args!(
        "{} names were offered; the router has {} KiB anonymous",
        offered.load(Ordering::Relaxed),
        memory.anonymous
    ));
    assert!(memory.anonymous < 32 << 10, "{memory:?}");
    for (at, guest) in guests.iter().enumerate() {
        let seen = stand.guest(&format!("bad-{at}"));
        let containers = seen["containers"].as_u64().unwrap();
        assert!((1..=1024).contains(&containers), "{seen:#}");
        assert_eq!(guest.links(), 1, "it costs no link");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_an_end_ends_its_link() {
    let mut stand = Stand::start("endless snapshots", "").await;
    let mut guests = Vec::new();
    // Many names, or few with long texts.
    for (name, containers, cgroup) in [("names", 1000, 0), ("texts", 14, 4096)] {
        guests.push(stand.bad(name, move |mut link| async move {
            let call = link.asked().await?;
            link.answer(&call, &super::link::hello(STREAM)).await?;
            for page in 0.. {
                let call = link.asked().await?;
                let container = |at| Container {
                    id: format!("n-{page}-{at}"),
                    cgroup: "x".repeat(cgroup),
                    ..Container::default()
                };
                let containers = (0..containers).map(container).collect();
                link.answer(&call, &SnapshotResponse { containers, more: true, ..Default::default() })
                    .await?;
            }
            Ok(())
        }));
    }
    stand.beside(Duration::from_secs(4)).await;
    for (name, guest) in ["names", "texts"].into_iter().zip(guests) {
        let said =
            ["Snapshot: malformed: containers of a snapshot", "Snapshot: malformed: bytes of a snapshot"];
        let problem = |it: &serde_json::Value| {
            it["problem"].as_str().is_some_and(|it| said.iter().any(|said| it.starts_with(said)))
        };
        let seen = stand.wait_guest(name, "the snapshot to be refused", problem).await;
        assert_eq!(seen["links"], 0, "it never came up: {seen:#}");
        assert!((2..=6).contains(&guest.links()), "{name}: {} links", guest.links());
    }
}

#[test]
fn names_made_up_push_out_no_other_sources_case() {
    let arrival = |source: &str, container: &str| {
        let line = include_str!("../../../router/src/demo/recording.jsonl").lines().next().unwrap();
        let mut arrival = replay::read(line).expect("a recording of ours").remove(0);
        let origin = Arc::get_mut(&mut arrival.origin).unwrap();
        (origin.source, origin.mode) = (source.to_owned(), Mode::Sole);
        arrival.signal.target.container_id = container.to_owned().try_into().unwrap();
        let known = arrival.origin.known.clone();
        Named { arrival, known, memory_limit: None }
    };
    let mut settings = Settings::default();
    settings.compile.program = Some(binary::find("coroner", "coroner").unwrap());
    let host = Arc::new(Host::new(settings).expect("the engine runs here"));
    let lineups = Keeper::start(Arc::clone(&host)).lineups();
    let mut worker = Worker::new(host, lineups, Vec::new());
    worker.rule(arrival("good", "mine"));
    for at in 0..40_000 {
        worker.rule(arrival("bad", &format!("c{at}")));
    }
    let case = worker.rule(arrival("good", "mine")).record.case;
    assert!(case.first_kill.is_some() && case.oom_sent, "{case:?}");
    let case = worker.rule(arrival("bad", "c0")).record.case;
    assert!(case.first_kill.is_none(), "who has most gives way: {case:?}");
}
