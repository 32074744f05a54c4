use super::*;
use coroner_core::mode::Mode;
use coroner_core::ruling::Action;
use coroner_core::signal::Victim;
use coroner_core::signal::{BUNDLE, Level};
use coroner_policy::Settings;
use coroner_sources::envelope::Origin;
use serde_json::json;

/// The kill that raises the counter of container `c1` to 3, as the report of this moment.
fn kill(received_ms: u64) -> WorkerTask {
    report(received_ms, 3, None)
}

/// A report of the counter, and of the counter of groups.
fn report(received_ms: u64, total: u64, groups: Option<u64>) -> WorkerTask {
    let kill = json!({
        "added": 1, "total": total, "groups": groups, "group": groups.map(|groups| groups > 0),
        "evidence": "counter", "level": "container", "late": false,
    });
    let signal = json!({
        "id": format!("n::s:c1:{received_ms}"),
        "at": { "received-ms": received_ms },
        "target": { "node": "n", "container-id": "c1" },
        "event": { "oom-kill": kill },
        "attributes": [],
    });
    let known = Mode::Sole.knowable();
    let origin =
        Origin { source: "s".to_owned(), mode: Mode::Sole, known: known.clone(), guest: None, shim: false };
    let envelope = Envelope {
        signal: serde_json::from_value(signal).unwrap(),
        origin: Arc::new(origin),
        usage_bytes: None,
        memory_limit: None,
        attributes: Vec::new(),
        ack: Ack::none(),
    };
    WorkerTask::Rule(Box::new(NamedSignal { envelope, known, memory_limit: None, seen_exit: None }))
}

/// The end of container `c1`.
fn exit(received_ms: u64) -> WorkerTask {
    let mut task = kill(received_ms);
    let WorkerTask::Rule(named) = &mut task else { panic!("it is a signal") };
    named.envelope.signal.event = Event::Exited(Exited { is_init: Some(true), ..Exited::unknown() });
    task
}

/// The same of a container with a wrapped shim.
fn wrapped(mut task: WorkerTask) -> WorkerTask {
    let WorkerTask::Rule(named) = &mut task else { panic!("it is a signal") };
    named.envelope.attributes = vec![(BUNDLE.to_owned(), "/run/bundle".to_owned())];
    task
}

/// The ruled signal; `None` where it is skipped.
fn ruled(worker: &mut Worker, task: WorkerTask) -> Option<RuledSignal> {
    match worker.step(task).unwrap() {
        WorkerOutput::Ruled(ruled) => Some(*ruled),
        WorkerOutput::Skipped { .. } => None,
    }
}

#[test]
fn one_kill_is_one_event_in_however_many_steps_its_counter_rises() {
    let host = Arc::new(Host::new(Settings::default()).unwrap());
    let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
    let mut ruled = |ms, total, groups| ruled(&mut worker, report(ms, total, groups)).unwrap();
    let first = ruled(10, 1, Some(0));
    assert_eq!(first.record.actions, [Action::TaskOom]);
    for (ms, total) in [(12, 30), (14, 399), (16, 400)] {
        let step = ruled(ms, total, Some(1));
        assert_eq!(step.record.actions, [], "{total}");
        assert_eq!(step.record.signal.attributes, [(SAME_KILL.to_owned(), "true".to_owned())]);
        assert_eq!(step.case.kills, Some(total));
    }
    let second = ruled(20, 402, Some(2));
    assert_eq!((second.record.actions, second.case.kills), (vec![Action::TaskOom], Some(402)));
}

#[test]
fn victim_of_a_kill_is_added_whichever_source_was_first() {
    let host = Arc::new(Host::new(Settings::default()).unwrap());
    let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
    let mut counted = kill(7);
    let WorkerTask::Rule(named) = &mut counted else { panic!("it is a signal") };
    let Event::OomKill(it) = &mut named.envelope.signal.event else { panic!("it is a kill") };
    it.level = Level::Unknown;
    let mut named = kill(9);
    let WorkerTask::Rule(it) = &mut named else { panic!("it is a signal") };
    let Event::OomKill(it) = &mut it.envelope.signal.event else { panic!("it is a kill") };
    it.victim = Some(Victim { pid: 7, comm: "java".to_owned(), is_init: Some(false) });
    assert_eq!(ruled(&mut worker, counted).unwrap().record.actions, [Action::TaskOom]);
    let step = ruled(&mut worker, named).unwrap();
    assert_eq!(step.record.actions, [], "one kill is ruled once");
    assert_eq!(step.record.signal.attributes, [(SAME_KILL.to_owned(), "true".to_owned())]);
    let Event::OomKill(repeated) = &step.record.signal.event else { panic!("it is a kill") };
    assert_eq!((repeated.added, repeated.late), (Some(0), false));
    let (at, last) = step.case.last_kill.as_ref().unwrap();
    assert_eq!((at.received_ms, last.level, step.case.kills), (7, Level::Container, Some(1)));
    assert_eq!(last.victim.as_ref().unwrap().comm, "java");
    assert!(ruled(&mut worker, kill(10)).is_none(), "it adds nothing");
}

#[test]
fn agents_report_after_the_exit_of_a_wrapped_container_is_the_same_kill() {
    let check = |is_wrapped: bool, ms: u64, total: u64, is_published: bool| {
        let host = Arc::new(Host::new(Settings::default()).unwrap());
        let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
        let of = |task| if is_wrapped { wrapped(task) } else { task };
        assert!(ruled(&mut worker, of(kill(7))).is_some());
        assert!(ruled(&mut worker, of(exit(8))).is_some());
        let late = ruled(&mut worker, of(report(ms, total, None)));
        let published = late.is_some_and(|it| it.record.actions == [Action::TaskOom]);
        assert_eq!(published, is_published, "wrapped: {is_wrapped}, {ms} ms, total {total}");
    };
    check(true, 9, 3, false);
    check(true, 9, 2, false);
    check(true, 9, 4, true);
    // It may have been restarted under its id.
    check(false, 9, 3, true);
    check(true, 60_000, 3, true);
}

#[test]
fn step_of_a_group_after_the_exit_of_a_wrapped_container_is_not_ruled() {
    let host = Arc::new(Host::new(Settings::default()).unwrap());
    let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
    let first = ruled(&mut worker, wrapped(report(7, 1, Some(1)))).unwrap();
    assert_eq!(first.record.actions, [Action::TaskOom]);
    assert!(ruled(&mut worker, wrapped(exit(8))).is_some());
    let step = ruled(&mut worker, wrapped(report(9, 5, Some(1)))).unwrap();
    assert_eq!((step.record.actions, step.case.kills), (vec![], Some(5)));
}

#[test]
fn kill_of_a_group_within_the_container_is_published_though_a_child_was_first() {
    let host = Arc::new(Host::new(Settings::default()).unwrap());
    let mut worker = Worker::new(host, ActiveChain::fixed(Vec::new()), Vec::new());
    let within = |ms, total, groups| {
        let mut task = report(ms, total, Some(groups));
        let WorkerTask::Rule(named) = &mut task else { panic!("it is a signal") };
        let Event::OomKill(kill) = &mut named.envelope.signal.event else { panic!("it is a kill") };
        kill.level = Level::Child;
        kill.victim = Some(Victim { pid: 7, comm: "job".to_owned(), is_init: Some(false) });
        task
    };
    assert_eq!(ruled(&mut worker, within(10, 1, 0)).unwrap().record.actions, []);
    let whole = ruled(&mut worker, within(12, 3, 1)).unwrap();
    assert_eq!(whole.record.actions, [Action::TaskOom]);
    let step = ruled(&mut worker, within(14, 4, 1)).unwrap();
    assert_eq!(step.record.actions, [], "it is published once");
}

#[test]
fn kill_is_ruled_again_after_a_crash_lost_its_ruling() {
    let host = Arc::new(Host::new(Settings::default()).unwrap());
    let worker = |cases| Worker::new(Arc::clone(&host), ActiveChain::fixed(Vec::new()), cases);
    // The same of a group: its own report is not a step of it.
    let mut grouped = worker(Vec::new());
    let before = ruled(&mut grouped, report(7, 3, Some(1))).unwrap();
    let id = before.record.signal.target.container_id.clone();
    let mut recovered = worker(vec![(id, "s".to_owned(), before.case.clone())]);
    let again = ruled(&mut recovered, report(7, 3, Some(1))).expect("its ruling was not written");
    assert_eq!(again.record.actions, [Action::TaskOom]);

    let mut first = worker(Vec::new());
    let before = ruled(&mut first, kill(7)).unwrap();
    assert!(ruled(&mut first, kill(8)).is_none(), "another source reports the same kill");
    assert!(ruled(&mut first, kill(7)).is_none(), "another does so within the same millisecond");
    let id = before.record.signal.target.container_id.clone();
    let mut second = worker(vec![(id, "s".to_owned(), before.case.clone())]);
    let again = ruled(&mut second, kill(7)).expect("its ruling was not written");
    assert_eq!(again.record.actions, before.record.actions);
    assert_eq!(again.case.kills, before.case.kills, "it is counted once");
    assert!(ruled(&mut second, kill(7)).is_none());
    assert!(ruled(&mut second, kill(8)).is_none());
}
