//! Wrapped shims and their proxies, played by a client: what the router makes of their events, and
//! when it lets an exit go.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coroner::node::config::Config;
use coroner_proto::shim::KillRequest;
use serde_json::{Value, json};
use tokio::time::timeout;
use ttrpc::asynchronous::Server;

use super::fakes::{Event, FakeAgent, FakeContainerd, Took, serve};
use super::shim::Shim;
use super::{Places, Running, agent_signal, exit as exit_of_agent, kill, ruled};

fn config(places: &Places, mode: &str) -> Config {
    let mut config = places.config("sole");
    let source = format!(
        "[containerd]\naddress = \"/none\"\n[[sink]]\nname = \"x\"\ntype = \"containerd\"\n\
         [[source]]\nname = \"shims\"\ntype = \"shim\"\naddress = \"unix://{}\"\nmode = \"{mode}\"",
        places.path("shims.sock").display()
    );
    config.sources = Config::parse(&source).unwrap().sources;
    config
}

fn other(topic: &str) -> Event {
    Event::Other { topic: topic.to_owned() }
}

fn oom() -> Event {
    Event::Oom { namespace: "k8s.io".to_owned(), container: "c1".to_owned() }
}

fn exit(status: u32) -> Event {
    Event::Exit { container: "c1".to_owned(), id: "c1".to_owned(), pid: 7, status }
}

async fn expect(events: &mut Took, all: &[Event]) {
    for event in all {
        assert_eq!(events.recv().await.as_ref(), Some(event));
    }
}

#[tokio::test]
async fn wrapped_shim_events_pass_in_order_without_repeats() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    for _ in 0..3 {
        shim.oom("c1").await;
    }
    shim.exit("c1", 137).await;
    shim.exit("c1", 137).await;
    shim.delete("c1").await;
    let order = [other("/tasks/create"), other("/tasks/start"), oom(), exit(137), other("/tasks/delete")];
    expect(&mut events, &order).await;
    let records = router.stop().await;
    let ruled = ruled(&records);
    let ids: Vec<&Value> = ruled.iter().map(|it| &it["signal"]["id"]).collect();
    assert_eq!(ids, ["n::shims:c1:oom", "n::shims:c1:exit-init-7"], "and nothing else is ruled");
    assert_eq!(ruled[0]["signal"]["target"]["owner"]["pod"], "p");
    assert_eq!(ruled[0]["signal"]["event"]["oom-kill"]["evidence"], "announced");
    assert_eq!(ruled[1]["signal"]["event"]["exited"]["at-ns"], 5_006_000_007_u64);
    assert!(ruled.iter().all(|it| it["mode"] == "wrapped"));
}

#[tokio::test]
async fn repeated_events_of_a_deleted_container_are_dropped() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "proxy"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    shim.rule("c1", 3, Vec::new()).await.unwrap();
    shim.release("c1", 3).await;
    shim.delete("c1").await;
    // As if it could not be reported in time.
    shim.exit("c1", 3).await;
    shim.release("c1", 3).await;
    // An OOM that was not reported before is reported late rather than never.
    shim.oom("c1").await;
    shim.oom("c1").await;
    let refused = shim.rule("c1", 3, Vec::new()).await.unwrap_err();
    assert!(refused.to_string().contains("was deleted"), "{refused}");
    // What is not ours to judge passes.
    shim.delete("c1").await;
    let order = [other("/tasks/create"), other("/tasks/start"), exit(3), other("/tasks/delete")];
    expect(&mut events, &order).await;
    expect(&mut events, &[oom(), other("/tasks/delete")]).await;
    let records = router.stop().await;
    assert_eq!(ruled(&records).len(), 2, "{records:#?}");
}

#[tokio::test]
async fn exit_reported_after_the_deletion_is_published_once() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    shim.delete("c1").await;
    shim.exit("c1", 3).await;
    shim.exit("c1", 3).await;
    let order = [other("/tasks/create"), other("/tasks/start"), other("/tasks/delete"), exit(3)];
    expect(&mut events, &order).await;
    let records = router.stop().await;
    assert_eq!(ruled(&records).len(), 1, "{records:#?}");
}

#[tokio::test]
async fn proxy_without_a_source_of_its_mode_is_refused() {
    let places = Places::new();
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    let refused = shim.rule("c1", 3, Vec::new()).await.unwrap_err();
    assert!(refused.to_string().contains("a proxy needs one"), "{refused}");
    router.stop().await;
}

#[tokio::test]
async fn task_exit_follows_the_release_and_carries_what_was_released() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "proxy"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    shim.oom("c1").await;
    let request = |seq, signal| KillRequest {
        seq,
        proxy_id: "x".to_owned(),
        container_id: "c1".to_owned(),
        signal,
        ..KillRequest::default()
    };
    let ruled_status = shim.rule("c1", 3, vec![request(1, 15), request(2, 9)]).await.unwrap();
    assert_eq!(ruled_status, 3, "the native ruling leaves the status");
    expect(&mut events, &[other("/tasks/create"), other("/tasks/start"), oom()]).await;
    // The shim's own event of it, and a second client that waits.
    shim.exit("c1", 3).await;
    assert_eq!(shim.rule("c1", 3, vec![request(2, 9)]).await.unwrap(), 3);
    shim.release("c1", 4).await;
    expect(&mut events, &[exit(4)]).await;
    shim.delete("c1").await;
    expect(&mut events, &[other("/tasks/delete")]).await;
    let records = router.stop().await;
    let kinds: Vec<String> = ruled(&records)
        .iter()
        .map(|it| it["signal"]["event"].as_object().unwrap().keys().next().unwrap().clone())
        .collect();
    assert_eq!(kinds, ["oom-kill", "kill-request", "kill-request", "exited"]);
    let case = &ruled(&records)[3]["case"]["requests"];
    assert_eq!((&case[0][1]["signal"], &case[1][1]["signal"]), (&json!(15), &json!(9)), "{case}");
}

#[tokio::test]
async fn invariant_5_exit_repeated_after_a_restart_keeps_its_id() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    shim.exit("c1", 1).await;
    expect(&mut events, &[other("/tasks/create"), other("/tasks/start"), exit(1)]).await;
    router.end().await;
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.exit("c1", 1).await;
    shim.delete("c1").await;
    let records = router.stop().await;
    let ruled = ruled(&records);
    assert!(ruled.iter().all(|it| it["signal"]["id"] == "n::shims:c1:exit-init-7"), "{ruled:#?}");
    let mut last = None;
    while last != Some(other("/tasks/delete")) {
        last = events.recv().await;
        assert!(last == Some(exit(1)) || last == Some(other("/tasks/delete")), "{last:?}");
    }
}

/// A node without containerd, with only the sinks of CRI-O and the audit.
fn config_of_crio(places: &Places) -> Config {
    let mut config = config(places, "proxy");
    let crio = Config::parse("[guests]\n[[sink]]\nname = \"crio\"\ntype = \"oom-file\"").unwrap();
    config.sinks.retain(|sink| !sink.kind.is_lifecycle());
    config.sinks.extend(crio.sinks);
    config.containerd = None;
    config
}

#[tokio::test]
async fn crio_oom_file_is_written_before_wait_is_answered() {
    let places = Places::new();
    let config = config_of_crio(&places);
    let file = places.path("bundle").join("oom");
    let router = Running::start(places.clone(), &config);
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    assert_eq!(shim.rule("c1", 3, Vec::new()).await.unwrap(), 3);
    assert!(!file.exists(), "nothing was killed");
    shim.begin(&places.path("bundle"), "c2").await;
    router.end().await;
    // The bundle is known from the journal.
    let router = Running::start(places.clone(), &config);
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.oom("c2").await;
    assert_eq!(shim.rule("c2", 3, Vec::new()).await.unwrap(), 3);
    assert!(file.exists());
    shim.oom("c3").await;
    shim.rule("c3", 3, Vec::new()).await.unwrap();
    let records = router.stop().await;
    let ruled = ruled(&records);
    let planned = |container: &str, at: usize| {
        let of = |it: &&&Value| it["signal"]["target"]["container-id"] == container;
        ruled.iter().filter(of).nth(at).unwrap()["delivery"][0].clone()
    };
    assert_eq!(planned("c2", 0)["sink"], "crio");
    assert_eq!(planned("c2", 1)["because"], "CRI-O learns of exits from the shim's own answer");
    let because = planned("c3", 0)["because"].clone();
    assert_eq!(because, "its bundle is not known: no wrapped shim has told its creation");
    let delivered: Vec<&Value> = records.iter().filter(|it| it["record"] == "delivered").collect();
    assert!(delivered.iter().all(|it| it["topic"] != "/tasks/exit"), "{delivered:#?}");
    assert_eq!(delivered.len(), 1, "what was withheld is not reported: {delivered:#?}");
}

/// A router that shims publish to, and a guest's agent that reports on the containers of the
/// sandbox `s`. Its mode is not the one that docs/operating/shims.md names: a shim's containers are
/// never ruled as if the router alone published.
async fn with_guest(places: &Places, config: Config) -> (Arc<FakeAgent>, Server, Running) {
    let agent = Arc::new(FakeAgent::default());
    let served = serve(&agent, &places.path("guest.sock")).await;
    let router = Running::start(places.clone(), &add_guest(places, config));
    // It is queried only once its link is up.
    agent.emit(agent_signal(1, "before", None));
    agent.read(1).await;
    (agent, served, router)
}

fn add_guest(places: &Places, mut config: Config) -> Config {
    let guest = json!({
        "name": "s", "type": "agent", "mode": "sole",
        "address": format!("unix://{}", places.path("guest.sock").display()),
    });
    config.guests.push(Config::guest(&guest.to_string()).unwrap());
    config
}

#[tokio::test]
async fn kill_found_by_the_guest_agent_precedes_the_exit() {
    for mode in ["wrapped", "proxy"] {
        let places = Places::new();
        let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
        let (agent, _served, router) = with_guest(&places, config(&places, mode)).await;
        let shim = Shim::connect(&places.path("shims.sock")).await;
        shim.begin(&places.path("bundle"), "c1").await;
        *agent.counter.lock().unwrap() = Some(1);
        *agent.found.lock().unwrap() = Some(kill(2, "c1", 1));
        if mode == "proxy" {
            assert_eq!(shim.rule("c1", 3, Vec::new()).await.unwrap(), 3);
            shim.release("c1", 3).await;
        }
        shim.exit("c1", 3).await;
        // The agent's own word of the end, and the shim's of the kill, once more.
        agent.emit(exit_of_agent(3, "c1", 3));
        shim.oom("c1").await;
        shim.delete("c1").await;
        agent.read(3).await;
        let order = [other("/tasks/create"), other("/tasks/start"), oom(), exit(3), other("/tasks/delete")];
        expect(&mut events, &order).await;
        let records = router.stop().await;
        let ruled = ruled(&records);
        let of = |it: &&&Value| it["signal"]["target"]["container-id"] == "c1";
        let ruled: Vec<&&Value> = ruled.iter().filter(of).collect();
        assert_eq!(ruled.len(), 2, "{mode}: {ruled:#?}");
        assert_eq!((&ruled[0]["source"], &ruled[0]["mode"]), (&json!("s"), &json!(mode)));
        assert_eq!((&ruled[1]["source"], &ruled[1]["mode"]), (&json!("shims"), &json!(mode)));
        assert_eq!(ruled[1]["case"]["kills"], 1, "{mode}");
    }
}

#[tokio::test]
async fn shim_oom_is_dropped_only_if_the_guest_agent_counts_none() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let (agent, _served, router) = with_guest(&places, config(&places, "wrapped")).await;
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    *agent.counter.lock().unwrap() = Some(0);
    shim.oom("c1").await;
    *agent.counter.lock().unwrap() = None;
    expect(&mut events, &[other("/tasks/create"), other("/tasks/start")]).await;
    shim.oom("c1").await;
    expect(&mut events, &[oom()]).await;
    // Nor is an agent waited for that promises what it never emits, or never answers.
    *agent.counter.lock().unwrap() = Some(0);
    agent.promised.store(u64::MAX, Ordering::SeqCst);
    shim.begin(&places.path("bundle"), "c2").await;
    let of_c2 = Event::Exit { container: "c2".to_owned(), id: "c2".to_owned(), pid: 7, status: 1 };
    let order = [other("/tasks/create"), other("/tasks/start"), of_c2];
    // Long before its link ends, which would end the wait as well.
    timeout(Duration::from_secs(10), shim.exit("c2", 1)).await.unwrap();
    expect(&mut events, &order).await;
    agent.silent.store(true, Ordering::SeqCst);
    shim.exit("c1", 137).await;
    expect(&mut events, &[exit(137)]).await;
    router.stop().await;
}

#[tokio::test]
async fn container_restarted_under_its_id_is_a_new_one() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let router = Running::start(places.clone(), &config(&places, "wrapped"));
    let shim = Shim::connect(&places.path("shims.sock")).await;
    for _ in 0..2 {
        shim.begin(&places.path("bundle"), "c1").await;
        shim.oom("c1").await;
        shim.exit("c1", 137).await;
        shim.delete("c1").await;
        let order = [other("/tasks/create"), other("/tasks/start"), oom(), exit(137), other("/tasks/delete")];
        expect(&mut events, &order).await;
    }
    let records = router.stop().await;
    let late = ruled(&records).iter().filter(|it| it["signal"]["event"]["oom-kill"]["late"] == true).count();
    assert_eq!(late, 0, "{records:#?}");
}

#[tokio::test]
async fn guest_agent_kill_becomes_the_oom_file_in_the_bundle() {
    let places = Places::new();
    let (agent, _served, router) = with_guest(&places, config_of_crio(&places)).await;
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    *agent.counter.lock().unwrap() = Some(1);
    *agent.found.lock().unwrap() = Some(kill(2, "c1", 1));
    assert_eq!(shim.rule("c1", 3, Vec::new()).await.unwrap(), 3);
    assert!(places.path("bundle").join("oom").exists());
    router.stop().await;
}

#[tokio::test]
async fn kill_counted_by_two_sources_is_ruled_once() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let mut config = places.config("beside");
    let mut other = config.sources[0].clone();
    other.name = "other".to_owned();
    other.address = format!("unix://{}", places.path("other.sock").display()).parse().unwrap();
    config.sources.push(other);
    let agents = [Arc::new(FakeAgent::default()), Arc::new(FakeAgent::default())];
    let _served = [
        serve(&agents[0], &places.path("agent.sock")).await,
        serve(&agents[1], &places.path("other.sock")).await,
    ];
    let router = Running::start(places.clone(), &config);
    for total in [1, 2] {
        agents[0].emit(kill(total, "c1", total));
        expect(&mut events, &[oom()]).await;
        agents[1].emit(kill(total, "c1", total));
        agents[1].acked(total).await;
    }
    agents[1].emit(kill(3, "c1", 3));
    expect(&mut events, &[oom()]).await;
    let records = router.stop().await;
    assert_eq!(ruled(&records).len(), 3, "{records:#?}");
}

#[tokio::test]
async fn shim_container_ownership_survives_a_router_restart() {
    let places = Places::new();
    let (_containerd, mut events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
    let (agent, _served, router) = with_guest(&places, config(&places, "wrapped")).await;
    let shim = Shim::connect(&places.path("shims.sock")).await;
    shim.begin(&places.path("bundle"), "c1").await;
    router.end().await;
    let router = Running::start(places.clone(), &add_guest(&places, config(&places, "wrapped")));
    // Before its shim reports again.
    agent.emit(kill(2, "c1", 1));
    agent.emit(exit_of_agent(3, "c1", 3));
    agent.acked(3).await;
    expect(&mut events, &[other("/tasks/create"), other("/tasks/start"), oom()]).await;
    let records = router.stop().await;
    let ruled = ruled(&records);
    let modes: Vec<(&Value, &Value)> =
        ruled.iter().map(|it| (&it["mode"], &it["signal"]["target"]["container-id"])).collect();
    assert_eq!(modes.last(), Some(&(&json!("wrapped"), &json!("c1"))), "{ruled:#?}");
}
