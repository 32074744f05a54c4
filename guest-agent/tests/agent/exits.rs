//! How containers and execs end.

use std::process::{Child, Command};

use ttrpc::Code;

use crate::harness::{Agent, Scratch, contain, enter, remove, watch};

const LIMIT: u64 = 64 << 20;

#[tokio::test]
async fn exit_carries_its_code() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    // 137 is also what a shell returns for a process that SIGKILL ended.
    for code in [0, 7, 137, 255] {
        let id = format!("code-{code}");
        reader.run(&scratch, &id, LIMIT, &format!("exit {code}")).await.wait().unwrap();
        let reports = reader.until_exit(&id).await;
        let exit = reports.exited();
        assert_eq!(
            (exit.status, exit.signal, exit.by_signal, exit.unknown_because.as_str()),
            (Some(code), None, Some(false), ""),
            "{exit:?}"
        );
        assert_eq!(exit.is_init, Some(true));
        assert!(reports.kills.is_empty());
    }
}

/// Faster than any runtime: fifty containers at once that live for a millisecond, and cgroups
/// removed at once.
#[tokio::test]
async fn fast_exits_reported_with_right_or_unknown_status() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let runs = 50;
    let children: Vec<Child> =
        (0..runs).map(|run| contain(&scratch.cgroup(&format!("fast-{run}"), LIMIT), "exit 5")).collect();
    let mut known = 0;
    for (run, mut child) in children.into_iter().enumerate() {
        child.wait().unwrap();
        let id = format!("fast-{run}");
        remove(&std::path::Path::new(crate::harness::MOUNT).join(&scratch.name).join(&id));
        let reports = reader.until_exit(&id).await;
        match reports.exited().status {
            Some(status) => {
                assert_eq!(status, 5);
                known += 1;
            }
            None => {
                assert!(reports.exited().unknown_because.contains("init not known"), "{:?}", reports.exited())
            }
        }
    }
    eprintln!("of {runs} exits at once: {known} with a status");
    assert!(known > 0);
}

#[tokio::test]
async fn external_sigkill_is_a_signal_without_oom() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let mut child = reader.run(&scratch, "shot", LIMIT, "read end").await;
    let init = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    assert!(Command::new("kill").args(["-9", init.trim()]).status().unwrap().success());
    let reports = reader.until_exit("shot").await;
    let exit = reports.exited();
    assert_eq!((exit.status, exit.signal, exit.core), (Some(137), Some(9), Some(false)), "{exit:?}");
    assert_eq!(exit.pid.map(|pid| pid.to_string()).as_deref(), Some(init.trim()));
    assert!(reports.kills.is_empty());
    child.wait().unwrap();
}

#[tokio::test]
async fn named_init_and_execs_followed_outside_roots() {
    let scratch = Scratch::new();
    let agent = Agent::start(&["nowhere"], None);
    let mut reader = agent.reader().await;
    let cgroup = scratch.cgroup("named", LIMIT);
    let mut init = enter(&cgroup, "read end");
    let mut exec = enter(&cgroup, "read end; exit 9");
    let path = scratch.path("named");
    reader.watch(watch("named", path.clone(), Some(init.id()), None)).await.unwrap();
    reader
        .watch(watch("named", path.clone(), Some(init.id()), None))
        .await
        .expect("a repeated watch is accepted");
    reader.watch(watch("named", String::new(), Some(exec.id()), Some("probe"))).await.unwrap();
    let taken = reader.watch(watch("named", path.clone(), Some(exec.id()), Some("other"))).await;
    assert_eq!(code(taken), Code::ALREADY_EXISTS);

    drop(exec.stdin.take());
    exec.wait().unwrap();
    assert!(Command::new("kill").arg(init.id().to_string()).status().unwrap().success());
    init.wait().unwrap();
    let reports = reader.until_exit("named").await;
    let exit = reports.exited();
    assert_eq!((exit.status, exit.signal, exit.is_init), (Some(143), Some(15), Some(true)), "{exit:?}");
    assert_eq!(exit.by_signal, Some(true));
    assert_eq!(exit.pid, Some(init.id()));
    let (id, exit) = reports.execs.first().unwrap();
    assert_eq!((id.as_str(), exit.status, exit.is_init), ("probe", Some(9), Some(false)));

    // A process that ended before the watch named it: its exit is reported as it was observed.
    let mut late = enter(&cgroup, "exit 4");
    late.wait().unwrap();
    reader.watch(watch("named", path, Some(late.id()), Some("late"))).await.unwrap();
    let begun = std::time::Instant::now();
    while !reader.seen.iter().any(|it| it.exec_id.as_deref() == Some("late")) {
        assert!(begun.elapsed() < crate::harness::TIMEOUT);
        reader.next(1000).await;
    }
    let reports = reader.until_exit("named").await;
    assert_eq!(reports.execs.last().unwrap().1.status, Some(4));
}

#[tokio::test]
async fn container_with_unknown_init_ends_with_its_cgroup() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let cgroup = scratch.cgroup("hostpid", LIMIT);
    let mut process = enter(&cgroup, "exit 1");
    process.wait().unwrap();
    remove(&cgroup);
    let reports = reader.until_exit("hostpid").await;
    let exit = reports.exited();
    assert_eq!((exit.status, exit.pid, exit.is_init), (None, None, None), "unknown is not zero");
    assert_eq!(exit.by_signal, None);
    assert!(exit.unknown_because.contains("cgroup gone"), "{exit:?}");
}

#[tokio::test]
async fn watch_of_missing_cgroup_or_taken_id_refused() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let reader = agent.reader().await;
    scratch.cgroup("there", LIMIT);
    for (id, cgroup, expect) in [
        ("x", scratch.path("none"), Code::FAILED_PRECONDITION),
        ("x", String::new(), Code::FAILED_PRECONDITION),
        ("x", format!("/{}/../{}", scratch.name, scratch.name), Code::INVALID_ARGUMENT),
        ("../x", scratch.path("there"), Code::INVALID_ARGUMENT),
        ("x", scratch.path("there"), Code::ALREADY_EXISTS),
        ("there", format!("/{}", scratch.name), Code::ALREADY_EXISTS),
    ] {
        assert_eq!(code(reader.watch(watch(id, cgroup.clone(), None, None)).await), expect, "{id} {cgroup}");
    }
    reader.watch(watch("there", scratch.path("there"), None, None)).await.unwrap();
}

fn code(answer: ttrpc::Result<()>) -> Code {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?}"),
    }
}
