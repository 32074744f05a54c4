use std::path::Path;
use std::sync::Arc;

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
