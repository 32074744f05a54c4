use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim;
use coroner_cgroup::Hierarchy;
use coroner_transport::Address;
use tokio::sync::mpsc;

use super::*;
use crate::FinalCounters;
use crate::envelope::Envelope;
use crate::ownership::Registered;
use crate::recovered::RecoveredSource;
use crate::settings::{Source, SourceKind};
use crate::shim::ExitBarriers;
use crate::shim::event::ShimEvent;
use crate::shim::service::ShimRequest;
use crate::shim::watch::Watch;
use coroner_containerd::holds::Holds;
use coroner_core::mode::Mode;
use coroner_core::signal::{Event, Evidence};

fn source() -> (ShimSource, mpsc::Receiver<Envelope>) {
    let source = Source {
        name: "shims".to_owned(),
        kind: SourceKind::Shim,
        mode: Mode::Wrapped,
        guest: None,
        address: Address::Unix("/no-such.sock".into()),
        machine: None,
    };
    let (envelopes, reported) = mpsc::channel(8);
    let barriers =
        ExitBarriers { holds: Holds::default(), final_counters: FinalCounters::new(Registered::default()) };
    let recovered = RecoveredSource::default();
    (ShimSource::new(source, "n".to_owned(), envelopes, Arc::default(), recovered, barriers), reported)
}

/// containerd's answer to each query, and the status of the end that is reported then.
async fn reported_status(answers: &[Option<&[(&str, TaskState)]>]) -> Option<Option<u32>> {
    let (mut source, mut reported) = source();
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id).started = true;
    source.gone(&id);
    for answer in answers {
        let due = source.containers.get_mut(&id).and_then(|it| it.vanished.as_mut()).unwrap();
        assert!(due.at > Instant::now() && reported.is_empty());
        due.at = Instant::now();
        let tasks = answer.map(|tasks| tasks.iter().map(|(id, state)| ((*id).to_owned(), *state)).collect());
        assert!(source.listed(tasks).await);
    }
    let envelope = reported.try_recv().ok()?;
    let Event::Exited(exited) = envelope.signal.event else { panic!("{envelope:?}") };
    assert!(exited.reconciled && !source.containers.contains_key(&id));
    Some(exited.status)
}

fn count(mount: &Path, cgroup: &str, kills: u64) {
    let folder = mount.join(cgroup);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("memory.events"), format!("oom_kill {kills}\n")).unwrap();
}

#[tokio::test]
async fn kill_in_a_removed_cgroup_is_found_in_its_pod_or_unknown() {
    let mount = tempfile::tempdir().unwrap();
    let at = mount.path();
    std::fs::write(at.join("cgroup.controllers"), "memory\n").unwrap();
    count(at, "kubepods/pod7", 2);
    count(at, "kubepods/pod7/c1", 0);
    let (mut source, _reported) = source();
    source.watch = Some(Watch::new(Hierarchy::at(at.to_owned()).unwrap()).unwrap());
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id);
    source.watch_counter(&id, Some("/kubepods/pod7/c1".to_owned()));
    let exit = |source: &ShimSource| {
        source.containers[&id]
            .exit("shims", &Process { exec: None, pid: None }, Some(137), None, false)
            .attributes
    };
    assert_eq!(source.read_final_counter(&id, Some(137)), []);

    std::fs::remove_dir_all(at.join("kubepods/pod7/c1")).unwrap();
    assert_eq!(source.read_final_counter(&id, Some(137)), [], "the pod has no kill more");
    count(at, "kubepods/pod7", 3);
    assert_eq!(source.read_final_counter(&id, Some(0)), [], "it may be another's");
    assert_eq!(exit(&source), [("kills-unknown-because".to_owned(), "cgroup gone".to_owned())]);
    source.containers.get_mut(&id).unwrap().kills_unknown = None;
    let [kill] = source.read_final_counter(&id, Some(137)).try_into().unwrap();
    assert_eq!(kill.attributes, [("witness".to_owned(), "pod-counter".to_owned())]);
    let Event::OomKill(kill) = kill.event else { panic!("{kill:?}") };
    assert_eq!((kill.added, kill.total, kill.evidence), (Some(1), Some(1), Evidence::Announced));
    assert_eq!(source.read_final_counter(&id, Some(137)), []);
    assert_eq!(exit(&source), []);

    std::fs::remove_dir_all(at.join("kubepods/pod7")).unwrap();
    assert_eq!(source.read_final_counter(&id, Some(137)), []);
    assert_eq!(exit(&source), [], "a kill was reported");
    source.containers.get_mut(&id).unwrap().kills = None;
    assert_eq!(source.read_final_counter(&id, Some(137)), []);
    assert_eq!(exit(&source), [("kills-unknown-because".to_owned(), "cgroup gone".to_owned())]);
}

/// Cgroup v1: the limit is the container's, the victim is in a cgroup within it.
#[tokio::test]
async fn announced_kill_below_the_container_counts_on_v1() {
    let mount = tempfile::tempdir().unwrap();
    let count = |cgroup: &str, kills: u64| {
        let folder = mount.path().join(cgroup);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("memory.oom_control"), format!("oom_kill {kills}\n")).unwrap();
    };
    for cgroup in ["", "c1", "c1/job"] {
        count(cgroup, 0);
    }
    let (mut source, mut reported) = source();
    source.watch = Some(Watch::new(Hierarchy::at(mount.path().to_owned()).unwrap()).unwrap());
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id);
    source.watch_counter(&id, Some("/c1".to_owned()));
    let ids = |signals: &[Signal]| signals.iter().map(|it| it.id.clone()).collect::<Vec<_>>();

    count("c1/job", 1);
    assert_eq!(source.read_final_counter(&id, None), [], "a limit within it: nothing is announced");
    count("c1/job", 2);
    let kill = source.announced(&id).unwrap();
    let Event::OomKill(killed) = &kill.event else { panic!("{kill:?}") };
    assert_eq!((kill.id.as_str(), killed.evidence), ("n::shims:c1:kill-below-2", Evidence::Announced));
    assert_eq!((killed.added, killed.total), (Some(2), None));
    assert_eq!(source.read_final_counter(&id, None), []);

    assert_eq!(source.announced(&id), None, "the victim may be the pod's other container");
    while source.containers[&id].unconfirmed.is_some() {
        tokio::time::sleep_until(source.due.first().unwrap().0).await;
        assert!(source.poll_due().await && reported.is_empty());
    }
    assert_eq!(source.announced(&id), None);
    count("c1/job", 3);
    while reported.is_empty() {
        tokio::time::sleep_until(source.due.first().unwrap().0).await;
        assert!(source.poll_due().await);
    }
    let envelope = reported.try_recv().unwrap();
    assert_eq!(envelope.signal.id, "n::shims:c1:kill-below-3");

    // Its own counter shows the kill, and the announcement is of that.
    count("c1", 1);
    count("c1/job", 4);
    count("c1/other", 0);
    assert_eq!(ids(&source.read_final_counter(&id, None)), ["n::shims:c1:kill-1"]);
    assert_eq!(source.announced(&id), None);
    std::fs::remove_dir_all(mount.path().join("c1/job")).unwrap();
    assert_eq!(source.read_final_counter(&id, None), [], "one kill is one event");
    // The counter that may have the kill of another announcement is gone.
    assert_eq!(source.announced(&id), None);
    std::fs::remove_dir_all(mount.path().join("c1/other")).unwrap();
    assert_eq!(ids(&source.read_final_counter(&id, None)), ["n::shims:c1:oom"]);
    assert_eq!(source.announced(&id), None);
    std::fs::remove_dir_all(mount.path().join("c1")).unwrap();
    assert_eq!(source.read_final_counter(&id, None), [], "an OOM was reported");
}

#[tokio::test]
async fn announced_kill_counts_if_the_cgroup_is_gone_on_v1() {
    let mount = tempfile::tempdir().unwrap();
    for cgroup in ["", "c1"] {
        let folder = mount.path().join(cgroup);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("memory.oom_control"), "oom_kill 0\n").unwrap();
    }
    let (mut source, _reported) = source();
    source.watch = Some(Watch::new(Hierarchy::at(mount.path().to_owned()).unwrap()).unwrap());
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id);
    source.watch_counter(&id, Some("/c1".to_owned()));
    assert_eq!(source.announced(&id), None);
    std::fs::remove_dir_all(mount.path().join("c1")).unwrap();
    let [kill] = source.read_final_counter(&id, Some(137)).try_into().unwrap();
    assert_eq!(kill.id, "n::shims:c1:oom");
    assert_eq!(source.read_final_counter(&id, Some(137)), []);
    assert_eq!(source.containers[&id].kills_unknown, None);
}

/// The counter is read before the announcement comes, and the cgroup is removed then.
#[tokio::test]
async fn announcement_of_a_counted_kill_adds_none_on_v1() {
    let mount = tempfile::tempdir().unwrap();
    let count = |kills: u64| {
        let text = format!("oom_kill {kills}\n");
        std::fs::create_dir_all(mount.path().join("c1")).unwrap();
        std::fs::write(mount.path().join("c1/memory.oom_control"), text).unwrap();
    };
    std::fs::write(mount.path().join("memory.oom_control"), "oom_kill 0\n").unwrap();
    count(0);
    let (mut source, _reported) = source();
    source.watch = Some(Watch::new(Hierarchy::at(mount.path().to_owned()).unwrap()).unwrap());
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id);
    source.watch_counter(&id, Some("/c1".to_owned()));
    count(1);
    assert_eq!(source.read_counter(&id).unwrap().id, "n::shims:c1:kill-1");
    assert_eq!(source.announced(&id), None);
    std::fs::remove_dir_all(mount.path().join("c1")).unwrap();
    assert_eq!(source.read_final_counter(&id, Some(137)), []);
}

/// An event of runc's shim about `c1`, with the end of its init where it has one.
fn event(topic: &str) -> ShimEvent {
    let message = TaskDelete {
        container_id: "c1".to_owned(),
        pid: 7,
        exit_status: 3,
        exited_at: MessageField::some(Timestamp { seconds: 5, ..Timestamp::default() }),
        ..TaskDelete::default()
    };
    let event = Any { value: message.write_to_bytes().unwrap(), ..Any::default() };
    ShimEvent::read(shim::event::Envelope {
        namespace: "k8s.io".to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..shim::event::Envelope::default()
    })
    .unwrap()
}

#[tokio::test]
async fn deletion_that_is_first_reports_the_exit() {
    let (mut source, mut reported) = source();
    let id = ContainerId::try_from("c1".to_owned()).unwrap();
    source.container("k8s.io", &id).started = true;
    let (written, _acknowledged) = mpsc::channel(8);
    for topic in ["/tasks/delete", "/tasks/delete"] {
        let (answer, _answered) = tokio::sync::oneshot::channel();
        let written = written.clone();
        let event = Box::new(event(topic));
        assert!(source.answer(ShimRequest::Forward { event, counted: false, written, answer }).await);
    }
    let exit = reported.try_recv().unwrap().signal;
    let Event::Exited(exited) = &exit.event else { panic!("{exit:?}") };
    assert_eq!((exit.id.as_str(), exited.status), ("n::shims:c1:exit-init-7", Some(3)));
    assert_eq!((exited.at_ns, exited.reconciled), (Some(5_000_000_000), false));
    for _ in 0..2 {
        assert!(matches!(reported.try_recv().unwrap().signal.event, Event::Forwarded(_)));
    }
    assert!(reported.is_empty());
}

#[tokio::test]
async fn unreported_end_queried_until_containerd_answers() {
    let (runs, stopped) =
        ([("c1", TaskState::Running)], [("c1", TaskState::Stopped(3)), ("c2", TaskState::Running)]);
    assert_eq!(reported_status(&[Some(&stopped)]).await, Some(Some(3)));
    assert_eq!(reported_status(&[Some(&[])]).await, Some(None));
    assert_eq!(reported_status(&[Some(&runs), None, None, Some(&runs), Some(&stopped)]).await, Some(Some(3)));
    assert_eq!(reported_status(&[None; 4]).await, None);
    assert_eq!(reported_status(&[None; 5]).await, Some(None));
}
