//! OOM kills by this machine's kernel.

use std::io::Write;
use std::time::Instant;

use coroner_proto::agent::{Level, OomKill, Victim, Witness};
use rustix::process::Signal;

use crate::evidence::evidence_of;
use crate::harness::{Agent, AgentProgram, Reader, Scratch, TIMEOUT, contain, remove, unique};
use crate::reports::ContainerReports;

const LIMIT: u64 = 16 << 20;

/// Repeats a kill in a new container until the kernel's log has its record, with the victim and the
/// limit: there are at most ten in five seconds, for all tests of this machine together.
async fn until_victim(
    reader: &mut Reader,
    scratch: &Scratch,
    script: &str,
) -> (ContainerReports, OomKill, Victim) {
    let begun = Instant::now();
    loop {
        let id = format!("victim-{}", unique());
        let mut child = reader.run(scratch, &id, LIMIT, script).await;
        let reports = reader.until_exit(&id).await;
        child.wait().unwrap();
        let kill = reports.kill_before_exit().clone();
        assert!(kill.total >= 1, "{kill:?}");
        assert_eq!((kill.added, kill.cgroup.clone()), (kill.total, scratch.path(&id)));
        assert_eq!(kill.limit_bytes, Some(LIMIT));
        assert!(kill.usage_bytes.is_some());
        assert_eq!(reports.exited().unknown_because, "");
        if let Some(victim) = kill.victim.clone().into_option()
            && kill.level.enum_value() != Ok(Level::LEVEL_UNKNOWN)
        {
            assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_CONTAINER));
            assert_eq!(limit_hit(&kill), (scratch.path(&id).as_str(), Some(LIMIT)));
            return (reports, kill, victim);
        }
        assert!(begun.elapsed() < TIMEOUT, "the kernel's log names no victim");
    }
}

fn limit_hit(kill: &OomKill) -> (&str, Option<u64>) {
    (&kill.limit_cgroup, kill.limit_cgroup_bytes)
}

#[tokio::test]
async fn child_kill_reported_before_parents_exit() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (reports, _, victim) = until_victim(&mut reader, &scratch, "tail /dev/zero; exit 1").await;
    assert_eq!((victim.comm.as_str(), victim.is_init), ("tail", Some(false)));
    let exit = reports.exited();
    assert_eq!((exit.status, exit.signal, exit.is_init), (Some(1), None, Some(true)), "{exit:?}");
    assert!(exit.pid.is_some());
}

#[tokio::test]
async fn init_over_limit_reported_as_victim() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (reports, _, victim) = until_victim(&mut reader, &scratch, "exec tail /dev/zero").await;
    let exit = reports.exited();
    assert_eq!((exit.status, exit.signal, exit.core), (Some(137), Some(9), Some(false)), "{exit:?}");
    assert_eq!((Some(victim.pid), victim.is_init), (exit.pid, Some(true)));
}

/// The cgroup exists for milliseconds only: created, over its limit, and removed at once by its
/// runtime. Where the counter can no longer be read, the kernel's log has the kill.
#[tokio::test]
async fn instant_kill_reported_though_cgroup_is_removed() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (mut logged, mut missed, mut statuses) = (0, 0, 0);
    const RUNS: usize = 20;
    for run in 0..RUNS {
        let id = format!("instant-{run}");
        let cgroup = scratch.cgroup(&id, 8 << 20);
        contain(&cgroup, "exec tail /dev/zero").wait().unwrap();
        remove(&cgroup);
        let reports = reader.until_exit(&id).await;
        let exit = reports.exited();
        if reports.kills.is_empty() {
            // The kernel's log names a cgroup ten times in five seconds, then pids alone.
            assert!(exit.pid.is_none() && !exit.kills_unknown_because.is_empty(), "{exit:?}");
            missed += 1;
            continue;
        }
        let kill = reports.kill_before_exit();
        assert_eq!((kill.total, exit.kills_unknown_because.as_str()), (1, ""), "{exit:?}");
        if kill.witness.enum_value() == Ok(Witness::WITNESS_KERNEL_LOG) {
            assert!(kill.victim.is_some() && exit.unknown_because.contains("cgroup gone"), "{exit:?}");
            logged += 1;
        }
        if let Some(status) = exit.status {
            assert_eq!(status, 137);
            statuses += 1;
        }
    }
    eprintln!(
        "of {RUNS} instant kills: {logged} by the kernel's log, {missed} unknown, {statuses} with a status"
    );
    assert!(missed < RUNS && statuses > 0);
}

#[tokio::test]
async fn kill_is_found_in_the_kernel_log_after_its_cgroup_is_removed() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start(&scratch.name);
    kill_is_found(&scratch, &agent, Witness::WITNESS_KERNEL_LOG).await;
}

#[tokio::test]
async fn kill_is_found_in_the_trace_without_the_kernel_log() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace_alone(&scratch.name);
    kill_is_found(&scratch, &agent, Witness::WITNESS_TRACE).await;
    // The trace names the victims of kills that were counted too, unless the counter was read
    // before the mark, or a victim that is not an init had left its cgroup (v1).
    let mut reader = agent.reader().await;
    let begun = Instant::now();
    loop {
        let id = format!("counted-{}", unique());
        let mut child = reader.run(&scratch, &id, LIMIT, "tail /dev/zero; read end").await;
        let kill = reader.until_kill(&id).await;
        assert_eq!(kill.witness.enum_value(), Ok(Witness::WITNESS_COUNTER));
        drop(child.stdin.take());
        child.wait().unwrap();
        if let Some(victim) = kill.victim.as_ref() {
            assert_eq!(victim.comm, "tail");
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "the trace names no victim");
    }
}

/// A SIGKILL of another process is not an OOM kill. The end of its pid namespace sends the kernel's
/// own SIGKILL to the child, as an OOM kill does.
#[tokio::test]
async fn kill_from_outside_is_not_found_in_the_trace() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace_alone(&scratch.name);
    let mut reader = agent.reader().await;
    let mut child = reader.run(&scratch, "killed", LIMIT, "sleep 60 & exec sleep 60").await;
    let init = reader.snapshot().await.iter().find(|it| it.id == "killed").unwrap().init_pid.unwrap();
    agent.signal(Signal::STOP);
    let pid = rustix::process::Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    child.wait().unwrap();
    remove(&scratch.folder("killed"));
    agent.signal(Signal::CONT);
    let reports = reader.until_exit("killed").await;
    assert!(reports.kills.is_empty(), "{:?}", reports.kills);
    assert_eq!(reports.exited().status, Some(137));
}

/// The cgroup is removed before the agent reads its counter: another witness has the kill.
async fn kill_is_found(scratch: &Scratch, agent: &AgentProgram, witness: Witness) {
    let mut reader = agent.reader().await;
    let mut child = reader.run(scratch, "removed", LIMIT, "read go; exec tail /dev/zero").await;
    agent.signal(Signal::STOP);
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    child.wait().unwrap();
    remove(&scratch.folder("removed"));
    agent.signal(Signal::CONT);
    let reports = reader.until_exit("removed").await;
    let exit = reports.exited();
    assert!(exit.unknown_because.contains("cgroup gone"), "{exit:?}");
    assert_eq!((exit.status, exit.kills_unknown_because.as_str()), (Some(137), ""));
    let kill = reports.kill_before_exit();
    assert_eq!((kill.total, kill.added, kill.limit_bytes), (1, 1, Some(LIMIT)));
    assert_eq!(kill.witness.enum_value(), Ok(witness));
    // The kernel's log has the limit of a cgroup that is gone, unless its rate limit is reached.
    let path = scratch.path("removed");
    let named = kill.level.enum_value() == Ok(Level::LEVEL_CONTAINER);
    assert_eq!(limit_hit(kill), if named { (path.as_str(), Some(LIMIT)) } else { ("", None) });
    let victim = kill.victim.as_ref().unwrap();
    assert_eq!((Some(victim.pid), victim.comm.as_str(), victim.is_init), (exit.pid, "tail", Some(true)));
    let evidence = evidence_of(&reader, "removed").await.unwrap();
    let own = &evidence.cgroups[0];
    assert_eq!((own.path.as_str(), own.usage_bytes, own.limited), (path.as_str(), None, None));
    assert!(evidence.cgroups[1].usage_bytes.is_some() && evidence.cgroups[1].limited == Some(false));
    let victims: Vec<u32> = evidence.report.victims.iter().map(|it| it.pid).collect();
    let logged = witness == Witness::WITNESS_KERNEL_LOG;
    assert_eq!(victims, if logged { vec![victim.pid] } else { vec![] });
    assert_eq!((evidence.report.is_some(), evidence.report.incomplete), (logged, logged && !named));
}

#[tokio::test]
async fn second_kill_adds_to_count_of_live_container() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let script = "tail /dev/zero; read go; tail /dev/zero; read end";
    let mut child = reader.run(&scratch, "survivor", LIMIT, script).await;
    let first = reader.until_kill("survivor").await;
    reader.ack = reader.after;
    reader.seen.clear();
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let second = reader.until_kill("survivor").await;
    assert_eq!((second.total, second.added), (first.total + 1, 1));
    let count = reader.final_count("survivor").await;
    assert_eq!(
        (count.kills_total, count.seq, count.exit.is_some()),
        (Some(second.total), reader.after, false)
    );
    drop(child.stdin.take());
    let reports = reader.until_exit("survivor").await;
    assert_eq!(reports.exited().status, Some(1));
    child.wait().unwrap();
}

#[tokio::test]
async fn kills_before_agent_start_are_baseline() {
    let scratch = Scratch::new();
    let cgroup = scratch.cgroup("earlier", LIMIT);
    let mut child = contain(&cgroup, "tail /dev/zero; echo killed; read end; exit 3");
    // The line arrives after the kill.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let snapshot = reader.snapshot().await;
    let container = snapshot.iter().find(|it| it.id == "earlier").unwrap();
    assert!(container.kills_before.is_some_and(|before| before >= 1), "{container:?}");
    assert_eq!(container.kills_total, container.kills_before);
    assert!(container.init_pid.is_some() && container.usage_bytes.is_some());
    assert_eq!((container.cgroup.clone(), container.limit_bytes), (scratch.path("earlier"), Some(LIMIT)));
    drop(child.stdin.take());
    let reports = reader.until_exit("earlier").await;
    assert!(reports.kills.is_empty());
    assert_eq!(reports.exited().status, Some(3));
    child.wait().unwrap();
}

#[tokio::test]
async fn limit_of_parent_reported_as_ancestor() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&format!("{}/kubepods*", scratch.name)], None);
    let mut reader = agent.reader().await;
    // A pod, its limit, and a container below it without one.
    let root = scratch.cgroup("kubepods", 1 << 40);
    let begun = Instant::now();
    let (kill, pod) = loop {
        let (name, id) = (format!("pod{}", unique()), format!("{:064x}", begun.elapsed().as_nanos()));
        let pod = root.join(&name);
        let cgroup = pod.join(&id);
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(pod.join("memory.limit_in_bytes"), LIMIT.to_string()).unwrap();
        contain(&cgroup, "tail /dev/zero; exit 1").wait().unwrap();
        let kill = reader.until_kill(&id).await;
        assert_eq!(kill.limit_bytes, None);
        if kill.level.enum_value() != Ok(Level::LEVEL_UNKNOWN) {
            assert!(kill.victim.is_some());
            break (kill, scratch.path(&format!("kubepods/{name}")));
        }
        assert!(begun.elapsed() < TIMEOUT, "the kernel's log names no victim");
    };
    assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_ANCESTOR));
    assert_eq!(limit_hit(&kill), (pod.as_str(), Some(LIMIT)));
}

#[tokio::test]
async fn final_count_of_unknown_container_is_unknown() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let count = agent.reader().await.final_count("unknown").await;
    assert_eq!((count.seq, count.kills_total, count.exit.is_some()), (0, None, false));
}
