//! A million names, and snapshots without an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coroner::node::NamedSignal;
use coroner::node::Worker;
use coroner::node::config::Mode;
use coroner_policy::{Host, PolicyManager, Settings};
use coroner_proto::agent::{Container, SnapshotResponse};
use coroner_sources::replay;
use coroner_tests::binary;
use coroner_tests::report::print;
use coroner_tests::wait::until;

use super::fixture::Fixture;
use super::{STREAM, answer, kill};

#[tokio::test(flavor = "multi_thread")]
async fn million_container_names_stay_within_the_memory_bound() {
    const NAMES: usize = 1_000_000;
    /// Some emit signals of containers with long names, which are rate limited; some list short
    /// ones, as many as a page may hold.
    const EMITTERS: usize = 2;
    const LISTERS: usize = 8;
    let mut fixture = Fixture::start("a million names", "").await;
    let offered = Arc::new(AtomicUsize::new(0));
    let mut guests = Vec::new();
    for at in 0..EMITTERS + LISTERS {
        let offered = Arc::clone(&offered);
        guests.push(fixture.bad(&format!("bad-{at}"), move |mut link| {
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
                        let signals = (0..if at < EMITTERS { 200 } else { 0 }).map(|_| {
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
    let (beside, million) = tokio::join!(fixture.beside(Duration::from_secs(6)), million);
    million.unwrap();
    // After the last of them too.
    let ((), memory) = (beside, fixture.router.memory().unwrap());
    print(format_args!(
        "{} names were offered; the router has {} KiB anonymous",
        offered.load(Ordering::Relaxed),
        memory.anonymous
    ));
    assert!(memory.anonymous < 32 << 10, "{memory:?}");
    for (at, guest) in guests.iter().enumerate() {
        let seen = fixture.guest(&format!("bad-{at}"));
        let containers = seen["containers"].as_u64().unwrap();
        assert!((1..=1024).contains(&containers), "{seen:#}");
        assert_eq!(guest.links(), 1, "it costs no link");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_snapshot_ends_its_link() {
    let mut fixture = Fixture::start("endless snapshots", "").await;
    let mut guests = Vec::new();
    // Many names, or few with long texts.
    for (name, containers, cgroup) in [("names", 1000, 0), ("texts", 14, 4096)] {
        guests.push(fixture.bad(name, move |mut link| async move {
            let call = link.call().await?;
            link.answer(&call, &super::link::hello(STREAM)).await?;
            for page in 0.. {
                let call = link.call().await?;
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
    fixture.beside(Duration::from_secs(4)).await;
    for (name, guest) in ["names", "texts"].into_iter().zip(guests) {
        let expected =
            ["Snapshot: malformed: containers of a snapshot", "Snapshot: malformed: bytes of a snapshot"];
        let problem = |it: &serde_json::Value| {
            it["problem"].as_str().is_some_and(|it| expected.iter().any(|expected| it.starts_with(expected)))
        };
        let seen = fixture.wait_guest(name, "the snapshot to be refused", problem).await;
        assert_eq!(seen["links"], 0, "it never came up: {seen:#}");
        assert!((2..=6).contains(&guest.links()), "{name}: {} links", guest.links());
    }
}

#[test]
fn invented_names_evict_no_case_of_another_source() {
    let envelope = |source: &str, container: &str| {
        let line = include_str!("../../../router/cli/src/demo/recording.jsonl").lines().next().unwrap();
        let mut envelope = replay::read(line).expect("a recording of ours").remove(0);
        let origin = Arc::get_mut(&mut envelope.origin).unwrap();
        (origin.source, origin.mode) = (source.to_owned(), Mode::Sole);
        envelope.signal.target.container_id = container.to_owned().try_into().unwrap();
        let known = envelope.origin.known.clone();
        NamedSignal { envelope, known, memory_limit: None, seen_exit: None }
    };
    let mut settings = Settings::default();
    settings.compile.program = Some(binary::find("coroner", "coroner-cli").unwrap());
    let host = Arc::new(Host::new(settings).expect("the engine runs here"));
    let active_chain = PolicyManager::start(Arc::clone(&host)).active_chain();
    let mut worker = Worker::new(host, active_chain, Vec::new());
    worker.rule(envelope("good", "mine"));
    for at in 0..40_000 {
        worker.rule(envelope("bad", &format!("c{at}")));
    }
    let case = worker.rule(envelope("good", "mine")).record.case;
    assert!(case.first_kill.is_some() && case.oom_sent, "{case:?}");
    let case = worker.rule(envelope("bad", "c0")).record.case;
    assert!(case.first_kill.is_none(), "the source with the most cases is evicted: {case:?}");
}
