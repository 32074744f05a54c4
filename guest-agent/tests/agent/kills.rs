//! OOM kills by this machine's kernel.

use std::io::Write;
use std::time::Instant;

use coroner_proto::agent::{Level, OomKill, SettleRequest, Victim};

use crate::harness::{Agent, PATIENCE, Reader, Scratch, Told, contain, limit, remove, unique};

const LIMIT: u64 = 16 << 20;

/// The kernel logs ten choices in five seconds, all tests of this machine together: the same is done again, as another
/// container, until its kill has a victim.
async fn until_victim(reader: &mut Reader, scratch: &Scratch, script: &str) -> (Told, OomKill, Victim) {
    let begun = Instant::now();
    loop {
        let id = format!("victim-{}", unique());
        let mut child = reader.run(scratch, &id, LIMIT, script).await;
        let told = reader.until_exit(&id).await;
        child.wait().unwrap();
        let kill = told.kill_before_exit().clone();
        assert!(kill.total >= 1, "{kill:?}");
        assert_eq!((kill.added, kill.cgroup.clone()), (kill.total, scratch.path(&id)));
        assert_eq!(kill.limit_bytes, Some(LIMIT));
        assert!(kill.usage_bytes.is_some());
        assert_eq!(told.exited().unknown_because, "");
        if let Some(victim) = kill.victim.clone().into_option() {
            assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_CONTAINER));
            return (told, kill, victim);
        }
        assert!(begun.elapsed() < PATIENCE, "the kernel's log names no victim");
    }
}

#[tokio::test]
async fn a_killed_child_is_told_before_its_parents_exit() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (told, _, victim) = until_victim(&mut reader, &scratch, "tail /dev/zero; exit 1").await;
    assert_eq!((victim.comm.as_str(), victim.is_init), ("tail", Some(false)));
    let exit = told.exited();
    assert_eq!((exit.status, exit.signal, exit.is_init), (Some(1), None, Some(true)), "{exit:?}");
    assert!(exit.pid.is_some());
}

#[tokio::test]
async fn an_init_over_its_limit_is_told_as_the_victim() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (told, _, victim) = until_victim(&mut reader, &scratch, "exec tail /dev/zero").await;
    let exit = told.exited();
    assert_eq!((exit.status, exit.signal, exit.core), (Some(137), Some(9), Some(false)), "{exit:?}");
    assert_eq!((Some(victim.pid), victim.is_init), (exit.pid, Some(true)));
}

/// The cgroup is there only for milliseconds: made, filled, over its limit, and removed at once by its runtime.
#[tokio::test]
async fn an_instant_kill_is_not_missed_even_if_the_cgroup_goes_at_once() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (mut killed, mut statuses, mut late) = (0, 0, 0);
    const RUNS: usize = 20;
    for run in 0..RUNS {
        let id = format!("instant-{run}");
        let cgroup = scratch.cgroup(&id, 8 << 20);
        contain(&cgroup, "exec tail /dev/zero").wait().unwrap();
        remove(&cgroup);
        let told = reader.until_exit(&id).await;
        let exit = told.exited();
        if !told.kills.is_empty() {
            assert!(told.kill_before_exit().total >= 1);
            killed += 1;
        } else {
            // Not seen is said to be not known.
            assert!(exit.unknown_because.contains("cgroup gone"), "{exit:?}");
            late += 1;
        }
        if let Some(status) = exit.status {
            assert_eq!(status, 137);
            statuses += 1;
        }
    }
    eprintln!("of {RUNS} instant kills: {killed} told, {late} gone before a look; {statuses} with a status");
    assert!(killed > 0 && statuses > 0);
}

#[tokio::test]
async fn a_second_kill_counts_on_and_the_container_lives() {
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
    let settled = reader.client.settle(limit(), &settle("survivor")).await.unwrap();
    assert_eq!(
        (settled.kills_total, settled.seq, settled.exit.is_some()),
        (Some(second.total), reader.after, false)
    );
    drop(child.stdin.take());
    let told = reader.until_exit("survivor").await;
    assert_eq!(told.exited().status, Some(1));
    child.wait().unwrap();
}

#[tokio::test]
async fn kills_from_before_the_agent_are_a_baseline_and_no_signal() {
    let scratch = Scratch::new();
    let cgroup = scratch.cgroup("earlier", LIMIT);
    let mut child = contain(&cgroup, "tail /dev/zero; echo killed; read end; exit 3");
    // The line says that the kill is over.
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
    let told = reader.until_exit("earlier").await;
    assert!(told.kills.is_empty());
    assert_eq!(told.exited().status, Some(3));
    child.wait().unwrap();
}

#[tokio::test]
async fn a_limit_above_is_told_as_the_ancestors() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&format!("{}/kubepods*", scratch.name)], None);
    let mut reader = agent.reader().await;
    // A pod, its limit, and a container below it without one.
    let root = scratch.cgroup("kubepods", 1 << 40);
    let begun = Instant::now();
    let kill = loop {
        let (pod, id) =
            (root.join(format!("pod{}", unique())), format!("{:064x}", begun.elapsed().as_nanos()));
        let cgroup = pod.join(&id);
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(pod.join("memory.limit_in_bytes"), LIMIT.to_string()).unwrap();
        contain(&cgroup, "tail /dev/zero; exit 1").wait().unwrap();
        let kill = reader.until_kill(&id).await;
        assert_eq!(kill.limit_bytes, None);
        if kill.victim.is_some() {
            break kill;
        }
        assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_UNKNOWN));
        assert!(begun.elapsed() < PATIENCE, "the kernel's log names no victim");
    };
    assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_ANCESTOR));
}

#[tokio::test]
async fn what_nobody_knows_settles_as_unknown() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let answer = agent.client().await.settle(limit(), &settle("nobody")).await.unwrap();
    assert_eq!((answer.seq, answer.kills_total, answer.exit.is_some()), (0, None, false));
}

fn settle(id: &str) -> SettleRequest {
    SettleRequest { container_id: id.to_owned(), ..SettleRequest::default() }
}
