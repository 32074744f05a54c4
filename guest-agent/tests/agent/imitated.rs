//! Cgroup v2 imitated by files: how counters are read, well-formed, malformed and gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coroner_proto::agent::{Level, WatchRequest};

use crate::harness::Agent;

fn hierarchy() -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), "memory\n").unwrap();
    mount
}

/// Files of one container, moved into place as a whole: the kernel makes a cgroup with all of its
/// files.
fn cgroup(mount: &Path, id: &str) -> PathBuf {
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
    assert!(kill.victim.is_none());
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
