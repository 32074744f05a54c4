//! Tests of routing, and that lanes end.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::route::Pattern;
use crate::settings::{Jsonl, Queue, SinkKind};
use coroner_core::audit::{Line, Record};
use coroner_core::ruling::{Action, Report};
use coroner_core::signal::{Owner, Signal};

/// A kill of the bundled recording, with a pod in this namespace.
fn signal(namespace: Option<&str>) -> Signal {
    let line = include_str!("../../cli/src/demo/recording.jsonl").lines().next().unwrap();
    let Record::Ruled(ruled) = serde_json::from_str::<Line>(line).unwrap().record else { panic!("{line}") };
    let mut signal = ruled.signal;
    signal.target.owner = namespace.map(|it| Owner { namespace: Some(it.to_owned()), ..Owner::default() });
    signal
}

fn report(topic: &str) -> Action {
    let (reason, message) = ("R".to_owned(), String::new());
    Action::Report(Report { topic: topic.to_owned(), reason, message, fields: Vec::new() })
}

struct Counted {
    one: Arc<SinkCounts>,
    other: Arc<SinkCounts>,
    unrouted: Arc<Count>,
}

fn route(topics: &[&str], namespaces: Option<&str>, sinks: &[&str]) -> Route {
    let patterns = |texts: &[&str]| texts.iter().map(|it| Pattern::new(it).unwrap()).collect();
    Route {
        topics: patterns(topics),
        kinds: None,
        namespaces: namespaces.map(|it| patterns(&[it])),
        sinks: sinks.iter().map(ToString::to_string).collect(),
    }
}

fn lanes(folder: &Path, routes: &[Route]) -> (Lanes, Counted, watch::Sender<bool>) {
    let sinks = ["one", "other"].map(|name| SinkSettings {
        name: name.to_owned(),
        kind: SinkKind::Jsonl(Jsonl::at(Some(folder.join(name)))),
        queue: Queue::default(),
    });
    let counted = Counted { one: Arc::default(), other: Arc::default(), unrouted: Arc::default() };
    let (give_up, given_up) = watch::channel(false);
    let counts = |name: &str| Arc::clone(if name == "one" { &counted.one } else { &counted.other });
    let lanes = Lanes::new(&sinks, routes, "n", counts, &counted.unrouted, &given_up);
    (lanes, counted, give_up)
}

#[test]
fn report_routed_by_topic_and_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let routes = [
        route(&["oom-*"], Some("prod-*"), &["one"]),
        route(&["oom-child", "*"], Some("test"), &["one", "other"]),
    ];
    let (lanes, counts, _give_up) = lanes(folder.path(), &routes);
    let fanout = &lanes.fanout;
    let led = |topic: &str, namespace: Option<&str>| {
        let planned = fanout.plan(&signal(namespace), 0, &report(topic), None)?;
        Ok(fanout.sinks(&planned).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(led("oom-x", Some("prod-1")), Ok("one".to_owned()));
    assert_eq!(led("oom-child", Some("test")), Ok("one other".to_owned()));
    let nowhere = "no route takes this topic for this kind of signal and namespace";
    assert_eq!(led("oom-x", Some("dev")), Err(nowhere));
    assert_eq!(led("x", None), Err(nowhere));
    assert_eq!(counts.unrouted.get(), 0, "these are left out on purpose");
    // These topics are the router's own: a policy must not use them.
    for topic in [AUDIT, "/tasks/oom"] {
        assert!(led(topic, Some("test")).unwrap_err().contains("containerd"), "{topic}");
    }
    assert_eq!(counts.unrouted.get(), 2);
}

#[tokio::test]
async fn lanes_end_after_last_sender_with_all_delivered() {
    let folder = tempfile::tempdir().unwrap();
    // Each lane records the deliveries of the other, and its own.
    let routes = [route(&["audit", "*"], None, &["one", "other"])];
    let (lanes, counts, _give_up) = lanes(folder.path(), &routes);
    let Lanes { lanes, records, fanout } = lanes;
    let mut tasks = tokio::task::JoinSet::new();
    for lane in lanes {
        tasks.spawn(lane.run());
    }
    let signal = signal(None);
    for at in 0..100 {
        fanout.send(&fanout.plan(&signal, at, &report("x"), None).unwrap());
    }
    drop((records, fanout));
    let ended = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
    assert!(ended.is_ok(), "a lane waits for one that waits for it");
    for (name, counts) in [("one", counts.one), ("other", counts.other)] {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let delivered = text.lines().filter(|line| line.contains("\"delivered\"")).count();
        assert_eq!(
            (text.lines().count(), delivered),
            (300, 200),
            "{name}: a hundred events, two deliveries of each"
        );
        assert_eq!(counts.delivered.get(), 300);
    }
}
