//! The design's invariants, as far as this router keeps them: each test bears its invariant's
//! number and name.

use std::sync::Arc;

use coroner::node::NamedSignal;
use coroner::node::Worker;
use coroner_core::audit::Record;
use coroner_policy::{Host, PolicyManager};
use coroner_sources::replay;

use super::fakes::{Event, FakeAgent, FakeContainerd, serve};
use super::{Places, Running, exit, kill, ruled};

#[tokio::test]
async fn invariant_1_every_exit_yields_its_task_exit() {
    let places = Places::new();
    let mut config = places.config("sole");
    // A policy that rules task-oom twice and no exit, whatever the signal.
    let policies = places.path("policies.d");
    std::fs::create_dir(&policies).unwrap();
    let double = coroner_tests::guests::component("double").unwrap();
    std::fs::write(policies.join("50-double.wasm"), double).unwrap();
    config.policies.directory = Some(policies);
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    for at in 0..20 {
        agent.emit(exit(at + 1, &format!("c{at}"), 3));
    }
    let router = Running::start(places, &config);
    let mut left: Vec<String> = (0..20).map(|at| format!("c{at}")).collect();
    while !left.is_empty() {
        let Some(Event::Exit { container, status: 3, .. }) = events.recv().await else { panic!("no exit") };
        left.retain(|it| *it != container);
    }
    let records = router.stop().await;
    assert!(ruled(&records).iter().all(|it| it["illegal"].is_string()), "and the refusal is audited");
}

#[tokio::test]
async fn invariant_2_known_kill_precedes_exit_and_late_one_is_marked() {
    let places = Places::new();
    let config = places.config("sole");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    agent.emit(kill(1, "c1", 1));
    agent.emit(exit(2, "c1", 1));
    agent.emit(kill(3, "c1", 2));
    let router = Running::start(places, &config);
    assert!(matches!(events.recv().await, Some(Event::Oom { .. })));
    assert!(matches!(events.recv().await, Some(Event::Exit { .. })));
    assert!(matches!(events.recv().await, Some(Event::Oom { .. })), "learnt late, and sent all the same");
    let records = router.stop().await;
    let late: Vec<_> =
        ruled(&records).iter().map(|it| it["signal"]["event"]["oom-kill"]["late"].clone()).collect();
    assert_eq!(late, [false.into(), serde_json::Value::Null, true.into()]);
}

#[tokio::test]
async fn invariant_5_undelivered_event_keeps_its_id_over_a_restart() {
    let places = Places::new();
    let (config, path) = (places.config("sole"), places.path("containerd.sock"));
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    agent.emit(kill(1, "c1", 1));
    // Nothing listens where containerd should be: this router is stopped with the kill unsent.
    let first = Running::start(places.clone(), &config);
    agent.read(1).await;
    let unsent = first.stop().await;
    assert_eq!(unsent.last().unwrap()["outcome"], "unsent", "{unsent:#?}");
    let unsent = unsent.last().unwrap()["id"].clone();
    let second = Running::start(places, &config);
    let (_containerd, mut events) = FakeContainerd::serve(&path, 0).await;
    assert!(matches!(events.recv().await, Some(Event::Oom { .. })));
    // It is the journal's: the agent need not keep it.
    agent.acked(1).await;
    let records = second.stop().await;
    let delivered = |it: &&serde_json::Value| it["record"] == "delivered" && it["id"] == unsent;
    let outcomes: Vec<_> = records.iter().filter(delivered).map(|it| &it["outcome"]).collect();
    assert_eq!(outcomes, ["unsent", "acked"], "{records:#?}");
    assert_eq!(ruled(&records).len(), 1, "it is delivered as it was ruled");
}

#[tokio::test]
async fn invariant_6_a_stuck_sink_delays_no_exit() {
    let places = Places::new();
    let mut config = places.config("sole");
    // A pipe without a reader holds its writer for ever once it is full, and before that its
    // opener.
    let stuck = places.path("stuck");
    rustix::fs::mkfifoat(rustix::fs::CWD, &stuck, rustix::fs::Mode::RWXU).unwrap();
    for sink in &mut config.sinks {
        if let coroner::node::config::SinkKind::Jsonl(file) = &mut sink.kind {
            file.path = Some(stuck.clone());
        }
    }
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    // More than the lane and its inbox hold: what is over is dropped, and holds up nothing.
    let count = 8192 + 4096 + 100;
    for at in 0..count {
        agent.emit(exit(at + 1, &format!("c{at}"), 0));
    }
    let router = Running::start(places, &config);
    for _ in 0..count {
        assert!(matches!(events.recv().await, Some(Event::Exit { .. })));
    }
    agent.acked(count).await;
    // Let the writer go, so that its thread ends with the test.
    let path = router.places.path("stuck");
    let drain = std::thread::spawn(move || {
        std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut std::io::sink())
    });
    router.stop().await;
    drain.join().unwrap().unwrap();
}

/// The audit lines of a recording, ruled by the bundled policies.
fn replayed(recording: &str) -> Vec<String> {
    let config = Places::new().config("sole");
    let host = Arc::new(Host::new(config.policies).expect("the engine runs here"));
    let active_chain = PolicyManager::start(Arc::clone(&host)).active_chain();
    assert_eq!(active_chain.now().policies.len(), 1);
    let mut worker = Worker::new(host, active_chain, Vec::new());
    let lines = replay::read(recording).expect("a recording of ours").into_iter().map(|envelope| {
        let (known, memory_limit) = (envelope.origin.known.clone(), envelope.memory_limit);
        let ruled = worker.rule(NamedSignal { envelope, known, memory_limit, seen_exit: None });
        Record::Ruled(Box::new(ruled.record)).to_line()
    });
    lines.collect()
}

#[test]
fn invariant_9_same_recording_gives_identical_rulings() {
    let recording = include_str!("../../../router/cli/src/demo/recording.jsonl");
    let first = replayed(recording);
    assert_eq!(first.len(), 2);
    assert_eq!(first, replayed(recording));
    // A ruling is itself a recording.
    assert_eq!(first, replayed(&first.concat()));
    // What the case had from elsewhere, a container's shim or its spec, does not belong to a
    // signal.
    let (limit, bundle) = ("\"memory-limit\":33554432", "\"attributes\":[[\"bundle\",\"/b\"]]},\"draft\"");
    let described =
        first[0].replace("\"memory-limit\":null", limit).replace("\"attributes\":[]},\"draft\"", bundle);
    let described = replayed(&described);
    assert!(described[0].contains(limit) && described[0].contains(bundle), "{described:?}");
    assert_eq!(replayed(&described.concat()), described);
}

#[tokio::test]
async fn invariant_11_unknown_is_not_zero() {
    let places = Places::new();
    let config = places.config("beside");
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    agent.emit(super::agent_signal(
        1,
        "c1",
        Some(coroner_proto::agent::signal::Event::Exited(Default::default())),
    ));
    let router = Running::start(places, &config);
    agent.acked(1).await;
    let records = router.stop().await;
    let record = ruled(&records)[0];
    for key in ["pid", "is-init", "status", "signal", "core"] {
        assert_eq!(record["signal"]["event"]["exited"].get(key), Some(&serde_json::Value::Null), "{key}");
    }
    for key in ["guest", "containerd-namespace", "sandbox-id", "exec-id", "owner"] {
        assert_eq!(record["signal"]["target"].get(key), Some(&serde_json::Value::Null), "{key}");
    }
    for key in ["started", "memory-limit", "memory-last", "first-kill", "requests", "exit"] {
        assert_eq!(record["case"].get(key), Some(&serde_json::Value::Null), "{key}");
    }
}
