//! Bad peers: agents and containerds that answer wrongly, late, or not at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coroner::node::config::Config;
use coroner_proto::agent::signal::Event as AgentEvent;
use coroner_proto::agent::{Container, Exited, Pressure, SnapshotResponse};
use protobuf::MessageField;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use ttrpc::asynchronous::Server;

use super::fakes::{Event, FakeAgent, FakeContainerd, serve};
use super::{Places, Running, agent_signal, exit, kill, ruled};

#[tokio::test]
async fn oversized_frame_ends_the_link_and_the_source_recovers() {
    let places = Places::new();
    let config = places.config("beside");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let socket = places.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let router = Running::start(places, &config);
    let (mut link, _) = listener.accept().await.unwrap();
    let mut request = [0; 10];
    link.read_exact(&mut request).await.unwrap();
    // A response of 3 MiB to any request: ttrpc alone would read all of it.
    link.write_all(&[0, 0x30, 0, 0, 0, 0, 0, 1, 2, 0]).await.unwrap();
    let taken = link.write_all(&vec![0; 0x30_0000]).await;
    assert!(taken.is_err(), "the router read the body of an oversized frame");
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &socket).await;
    agent.emit(kill(1, "c1", 1));
    assert_eq!(
        events.recv().await,
        Some(Event::Oom { namespace: "k8s.io".to_owned(), container: "c1".to_owned() })
    );
    router.stop().await;
}

#[tokio::test]
async fn broken_signal_does_not_affect_the_others() {
    let places = Places::new();
    let config = places.config("beside");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    let long = "x".repeat(257);
    for (seq, id) in ["", "a/../b", "caf\u{e9}", &long].into_iter().enumerate() {
        agent.emit(kill(seq as u64 + 1, id, 1));
    }
    agent.emit(agent_signal(5, "c1", None));
    agent.emit(kill(6, "c1", 1));
    let router = Running::start(places, &config);
    assert_eq!(
        events.recv().await,
        Some(Event::Oom { namespace: "k8s.io".to_owned(), container: "c1".to_owned() })
    );
    // The refused ones are dealt with too: an agent would else keep them for ever.
    agent.acked(6).await;
    let records = router.stop().await;
    let ruled = ruled(&records);
    assert_eq!(ruled.len(), 2, "{ruled:#?}");
    assert_eq!(ruled[0]["signal"]["event"]["other"]["kind"], "none");
    assert_eq!(ruled[1]["signal"]["id"], "n::fake:c1:6");
}

#[tokio::test]
async fn peer_without_the_service_does_not_affect_other_sources() {
    let places = Places::new();
    let config = places.config("beside");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    // A ttrpc server without the service answers as old peers do.
    let address = format!("unix://{}", places.path("agent.sock").display());
    let mut stranger = Server::new().bind(&address).unwrap();
    stranger.start().await.unwrap();
    let mut both = config.clone();
    let mut second = config.sources[0].clone();
    second.name = "second".to_owned();
    second.address = format!("unix://{}", places.path("second.sock").display()).parse().unwrap();
    both.sources.push(second);
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("second.sock")).await;
    let router = Running::start(places, &both);
    agent.emit(kill(1, "c1", 1));
    assert!(events.recv().await.is_some(), "the other source is read");
    router.stop().await;
    assert_eq!(agent.hellos.load(Ordering::SeqCst), 1, "and it was greeted once");
}

#[tokio::test]
async fn refusing_containerd_gets_everything_later_in_order() {
    let places = Places::new();
    let config = places.config("sole");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 3).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    for at in 0..5 {
        agent.emit(kill(2 * at + 1, &format!("c{at}"), 1));
        agent.emit(exit(2 * at + 2, &format!("c{at}"), 137));
    }
    let router = Running::start(places, &config);
    let mut took = Vec::new();
    while took.len() < 10 {
        took.push(events.recv().await.unwrap());
    }
    for at in 0..5 {
        let container = format!("c{at}");
        let place = |want: &Event| took.iter().position(|it| it == want).unwrap();
        let oom = place(&Event::Oom { namespace: "k8s.io".to_owned(), container: container.clone() });
        let exit = place(&Event::Exit { container: container.clone(), id: container, pid: 7, status: 137 });
        assert!(oom < exit, "{took:?}");
    }
    agent.acked(10).await;
    let records = router.stop().await;
    let attempts: u64 = records.iter().filter_map(|it| it["attempts"].as_u64()).sum();
    assert_eq!(attempts, 13, "what was refused three times is retried in place, nothing else is");
}

#[tokio::test]
async fn signals_lost_by_the_agent_are_recovered_from_snapshot() {
    let places = Places::new();
    let config = places.config("sole");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let agent = Arc::new(FakeAgent::default());
    let _server = serve(&agent, &places.path("agent.sock")).await;
    let status = |status| MessageField::some(Exited { status: Some(status), ..Exited::default() });
    let container = |id: &str, kills_total, kills_before, exit| Container {
        id: id.to_owned(),
        kills_total: Some(kills_total),
        kills_before: Some(kills_before),
        exit,
        ..Container::default()
    };
    *agent.snapshot.lock().unwrap() = Some(SnapshotResponse {
        containers: vec![
            container("new", 1, 0, status(137)),
            // Killed before the agent came, and nothing since: no signal.
            container("old", 5, 5, MessageField::none()),
            container("reported", 1, 0, MessageField::none()),
        ],
        as_of_seq: 40,
        ..SnapshotResponse::default()
    });
    agent.emit(kill(1, "reported", 1));
    let router = Running::start(places, &config);
    let oom =
        |container: &str| Event::Oom { namespace: "k8s.io".to_owned(), container: container.to_owned() };
    assert_eq!(events.recv().await, Some(oom("reported")));
    *agent.lost.lock().unwrap() = 3;
    agent.changed.notify_waiters();
    assert_eq!(events.recv().await, Some(oom("new")));
    let id = "new".to_owned();
    assert_eq!(events.recv().await, Some(Event::Exit { container: id.clone(), id, pid: 0, status: 137 }));
    agent.emit(kill(41, "old", 6));
    assert_eq!(events.recv().await, Some(oom("old")));
    agent.acked(41).await;
    let records = router.stop().await;
    let mut ids: Vec<&str> = ruled(&records).iter().map(|it| it["signal"]["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "a kill and an exit out of one snapshot are two events");
    let of_old = |it: &&&serde_json::Value| it["signal"]["target"]["container-id"] == "old";
    assert_eq!(
        ruled(&records).iter().filter(of_old).count(),
        1,
        "kills from before the agent came are not signals"
    );
}

#[tokio::test]
async fn pressure_of_an_ended_container_does_not_make_it_live() {
    let places = Places::new();
    let mut config = places.config("sole");
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let mut monitor = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let guest = serde_json::json!({
        "name": "vm", "type": "agent", "mode": "sole", "monitor_pid": monitor.id(),
        "address": format!("unix://{}", places.path("guest.sock").display()),
    });
    config.guests.push(Config::guest(&guest.to_string()).unwrap());
    let agent = Arc::new(FakeAgent::default());
    let mut served = serve(&agent, &places.path("guest.sock")).await;
    let container = |id: &str, exit| Container { id: id.to_owned(), exit, ..Container::default() };
    // One ended before this router came: its end was reported to the one before.
    *agent.snapshot.lock().unwrap() = Some(SnapshotResponse {
        containers: vec![
            container("ended", MessageField::some(Exited::default())),
            container("lives", MessageField::none()),
        ],
        as_of_seq: 1,
        ..SnapshotResponse::default()
    });
    let pressure = |seq, id| agent_signal(seq, id, Some(AgentEvent::Pressure(Pressure::default())));
    agent.emit(pressure(1, "ended"));
    agent.emit(pressure(2, "lives"));
    let router = Running::start(places, &config);
    agent.acked(2).await;
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    served.shutdown().await.unwrap();
    drop(served);
    let Some(Event::Exit { container, status, .. }) = events.recv().await else { panic!("an exit") };
    assert_eq!((container.as_str(), status), ("lives", 255));
    let records = router.stop().await;
    let lost = ruled(&records);
    let lost = lost.iter().filter(|it| !it["signal"]["event"]["guest-lost"].is_null());
    let lost: Vec<_> = lost.map(|it| &it["signal"]["target"]["container-id"]).collect();
    assert_eq!(lost, ["lives"]);
}
