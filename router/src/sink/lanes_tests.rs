//! Where documents are led, and that lanes end.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::audit::{Line, Record};
use crate::ruling::{Action, Report};
use crate::signal::{Owner, Signal};

/// A kill of the bundled recording, of a pod in this namespace.
fn signal(namespace: Option<&str>) -> Signal {
    let line = include_str!("../demo/recording.jsonl").lines().next().unwrap();
    let Record::Ruled(ruled) = serde_json::from_str::<Line>(line).unwrap().record else { panic!("{line}") };
    let mut signal = ruled.signal;
    signal.target.owner = namespace.map(|it| Owner { namespace: Some(it.to_owned()), ..Owner::default() });
    signal
}

fn report(topic: &str) -> Action {
    let (reason, message) = ("R".to_owned(), String::new());
    Action::Report(Report { topic: topic.to_owned(), reason, message, fields: Vec::new() })
}

fn lanes(folder: &Path, routes: &str) -> (Lanes, Arc<Counts>, watch::Sender<bool>) {
    let sink = |name: &str| {
        format!("[[sink]]\nname = \"{name}\"\ntype = \"jsonl\"\npath = \"{}/{name}\"\n", folder.display())
    };
    let text = format!("[guests]\n{}{}{routes}", sink("one"), sink("other"));
    let config = Config::parse(&text).unwrap();
    let sinks = config.sinks.iter().map(|it| (it.name.clone(), Arc::default())).collect();
    let counts = Arc::new(Counts { sinks, ..Counts::default() });
    let (give_up, hears) = watch::channel(false);
    (Lanes::new(&config, &counts, &hears), counts, give_up)
}

#[test]
fn a_report_goes_where_its_topic_and_namespace_lead() {
    let folder = tempfile::tempdir().unwrap();
    let routes = r#"
        [[route]]
        topics = ["oom-*"]
        namespaces = ["prod-*"]
        sinks = ["one"]
        [[route]]
        topics = ["oom-child", "*"]
        namespaces = ["test"]
        sinks = ["one", "other"]
    "#;
    let (lanes, counts, _give_up) = lanes(folder.path(), routes);
    let outlets = &lanes.outlets;
    let led = |topic: &str, namespace: Option<&str>| {
        let planned = outlets.plan(&signal(namespace), 0, &report(topic), None)?;
        Ok(outlets.sinks(&planned).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(led("oom-x", Some("prod-1")), Ok("one".to_owned()));
    assert_eq!(led("oom-child", Some("test")), Ok("one other".to_owned()));
    let nowhere = "no route takes this topic for this kind of signal and namespace";
    assert_eq!(led("oom-x", Some("dev")), Err(nowhere));
    assert_eq!(led("x", None), Err(nowhere));
    assert_eq!(counts.reports_unrouted.get(), 0, "these are left out on purpose");
    // What the router itself says under these names is not for a policy to say.
    for topic in [AUDIT, "/tasks/oom"] {
        assert!(led(topic, Some("test")).unwrap_err().contains("containerd"), "{topic}");
    }
    assert_eq!(counts.reports_unrouted.get(), 2);
}

#[tokio::test]
async fn lanes_end_when_nobody_can_tell_them_more_and_have_all_of_it_then() {
    let folder = tempfile::tempdir().unwrap();
    // Each tells the other, and itself, what became of its events.
    let routes = r#"
        [[route]]
        topics = ["audit", "*"]
        sinks = ["one", "other"]
    "#;
    let (lanes, counts, _give_up) = lanes(folder.path(), routes);
    let Lanes { lanes, records, outlets } = lanes;
    let mut tasks = tokio::task::JoinSet::new();
    for lane in lanes {
        tasks.spawn(lane.run());
    }
    let signal = signal(None);
    for at in 0..100 {
        outlets.send(&outlets.plan(&signal, at, &report("x"), None).unwrap());
    }
    drop((records, outlets));
    let ended = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
    assert!(ended.is_ok(), "a lane waits for one that waits for it");
    for name in ["one", "other"] {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let told = text.lines().filter(|line| line.contains("\"delivered\"")).count();
        assert_eq!((text.lines().count(), told), (300, 200), "{name}: a hundred events, two fates of each");
        assert_eq!(counts.sink(name).delivered.get(), 300);
    }
}
