//! Cgroup v2 imitated by files: how counters are read, well-formed, malformed and gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coroner_proto::agent::{CauseKind, Level, WatchRequest};
use rustix::fs::{XattrFlags, setxattr};
use rustix::process::{Pid, Signal};

use crate::harness::Agent;

pub(crate) fn hierarchy() -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), "memory\n").unwrap();
    mount
}

/// Files of one container, moved into place as a whole: the kernel makes a cgroup with all of its
/// files.
pub(crate) fn cgroup(mount: &Path, id: &str) -> PathBuf {
    let (made, folder) = (mount.join(format!("making-{id}")), mount.join("r").join(id));
    fs::create_dir_all(&made).unwrap();
    fs::create_dir_all(mount.join("r")).unwrap();
    for (name, text) in [
        ("memory.events", "oom 0\noom_kill 0\noom_group_kill 0\n"),
        ("memory.events.local", "oom 0\n"),
        ("cgroup.events", "populated 1\n"),
        ("cgroup.procs", ""),
        ("memory.max", "1048576\n"),
        ("memory.current", "4096\n"),
    ] {
        fs::write(made.join(name), text).unwrap();
    }
    fs::rename(made, &folder).unwrap();
    folder
}

#[tokio::test]
async fn rising_counter_reported_with_level_and_group() {
    let mount = hierarchy();
    let folder = cgroup(mount.path(), "c1");
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    fs::write(folder.join("memory.events.local"), "oom 0\n").unwrap();
    fs::write(folder.join("memory.events"), "oom 1\noom_kill 2\noom_group_kill 1\n").unwrap();
    let kill = reader.until_kill("c1").await;
    assert_eq!((kill.total, kill.added, kill.group), (2, 2, Some(true)));
    assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_CHILD));
    assert_eq!((kill.limit_bytes, kill.usage_bytes), (Some(1_048_576), Some(4096)));
    assert_eq!((kill.limit_cgroup.as_str(), kill.limit_cgroup_bytes), ("", None));
    assert!(kill.victim.is_none());
    reader.seen.clear();
    fs::write(folder.join("memory.events.local"), "oom 1\n").unwrap();
    fs::write(folder.join("memory.events"), "oom 2\noom_kill 3\noom_group_kill 1\n").unwrap();
    let kill = reader.until_kill("c1").await;
    assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_CONTAINER));
    assert_eq!((kill.limit_cgroup.as_str(), kill.limit_cgroup_bytes), ("/r/c1", Some(1_048_576)));
    fs::remove_dir_all(&folder).unwrap();
    let reports = reader.until_exit("c1").await;
    assert!(reports.exited().unknown_because.contains("cgroup gone"));
}

#[tokio::test]
async fn malformed_counter_keeps_last_value_without_signal() {
    let mount = hierarchy();
    let folder = cgroup(mount.path(), "c1");
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    for nonsense in [
        "",
        "oom_kill\n",
        "oom_kill x\n",
        "oom_kill 99999999999999999999\n",
        "\0\0",
        "oom_kill 5\noom_kill 6\n",
    ] {
        fs::write(folder.join("memory.events"), nonsense).unwrap();
        let count = reader.final_count("c1").await;
        assert_eq!((count.kills_total, count.seq), (Some(0), 0), "{nonsense:?}");
    }
    fs::remove_file(folder.join("memory.events")).unwrap();
    let count = reader.final_count("c1").await;
    assert_eq!((count.kills_total, count.seq), (Some(0), 0));
    // The next well-formed value continues from the last one.
    fs::write(folder.join("memory.events"), "oom_kill 1\n").unwrap();
    assert_eq!(reader.final_count("c1").await.kills_total, Some(1));
    assert_eq!(reader.until_kill("c1").await.total, 1);
}

#[tokio::test]
async fn counter_malformed_at_start_unknown_until_readable() {
    let mount = hierarchy();
    let folder = cgroup(mount.path(), "c1");
    fs::write(folder.join("memory.events"), "nonsense\n").unwrap();
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    assert_eq!(reader.snapshot().await[0].kills_total, None);
    fs::write(folder.join("memory.events"), "oom_kill 4\n").unwrap();
    let count = reader.final_count("c1").await;
    assert_eq!((count.kills_total, count.seq), (Some(4), 0), "the times of these are unknown");
    fs::write(folder.join("memory.events"), "oom_kill 5\n").unwrap();
    let kill = reader.until_kill("c1").await;
    assert_eq!((kill.total, kill.added), (5, 1));
}

#[tokio::test]
async fn restarted_container_continues_its_count() {
    let mount = hierarchy();
    fs::create_dir_all(mount.path().join("r")).unwrap();
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    for total in 1..=2 {
        // Made in place, as a kernel does, so that its folder is seen to be new.
        let folder = mount.path().join("r/c1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory.events"), "oom_kill 1\n").unwrap();
        assert_eq!(reader.final_count("c1").await.kills_total, Some(total));
        let kill = reader.until_kill("c1").await;
        assert_eq!(kill.total, total);
        fs::remove_dir_all(&folder).unwrap();
        reader.until_exit("c1").await;
        reader.ack = reader.after;
        reader.seen.clear();
    }
}

#[tokio::test]
async fn falling_counter_continues_the_count() {
    let mount = hierarchy();
    let folder = cgroup(mount.path(), "c1");
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let reader = agent.reader().await;
    for (counter, total) in [(3, 3), (1, 4), (0, 4), (2, 6)] {
        fs::write(folder.join("memory.events"), format!("oom_kill {counter}\n")).unwrap();
        assert_eq!(reader.final_count("c1").await.kills_total, Some(total), "{counter}");
    }
}

/// A counter file that is replaced as a whole causes no notice: only the final read before the exit
/// finds the kill.
#[tokio::test]
async fn kill_without_notice_reported_before_exit() {
    let mount = hierarchy();
    let folder = cgroup(mount.path(), "c1");
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    let mut init = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let watch =
        WatchRequest { container_id: "c1".to_owned(), init_pid: Some(init.id()), ..WatchRequest::default() };
    reader.watch(watch).await.unwrap();
    fs::write(mount.path().join("next"), "oom_kill 1\n").unwrap();
    fs::rename(mount.path().join("next"), folder.join("memory.events")).unwrap();
    drop(init.stdin.take());
    init.wait().unwrap();
    let reports = reader.until_exit("c1").await;
    assert_eq!(reports.kill_before_exit().total, 1);
    assert_eq!(reports.exited().status, Some(0));
}

/// systemd-oomd counts its kills in attributes of the cgroup that it kills, or one above it.
#[tokio::test]
async fn kill_by_oomd_is_proven_by_the_attribute_alone() {
    let mount = hierarchy();
    let agent = Agent::start(&["r"], Some(mount.path().to_owned()));
    let mut reader = agent.reader().await;
    let set = |folder: &Path, name: &str, value: &str| {
        setxattr(folder, name, value.as_bytes(), XattrFlags::empty()).unwrap();
    };
    for (id, above, expect) in [
        ("c1", false, Some(CauseKind::CAUSE_OOMD)),
        ("c2", true, Some(CauseKind::CAUSE_OOMD)),
        ("c3", false, None),
    ] {
        let folder = cgroup(mount.path(), id);
        // Kills before the container appeared are not its own.
        let mut init = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut watch = WatchRequest {
            container_id: id.to_owned(),
            init_pid: Some(init.id()),
            ..WatchRequest::default()
        };
        watch.cgroup = format!("/r/{id}");
        reader.watch(watch).await.unwrap();
        match (expect, above) {
            (None, _) => {}
            (_, true) => set(&mount.path().join("r"), "user.oomd_ooms", "1"),
            (_, false) => set(&folder, "user.oomd_kill", "3"),
        }
        rustix::process::kill_process(Pid::from_child(&init), Signal::KILL).unwrap();
        init.wait().unwrap();
        let reports = reader.until_exit(id).await;
        let cause = reports.exited().cause.as_ref();
        assert_eq!(cause.map(|cause| cause.kind.enum_value().unwrap()), expect, "{id} {cause:?}");
        assert!(cause.is_none_or(|cause| cause.sources == ["xattr"] && cause.sender.is_none()));
    }
}
