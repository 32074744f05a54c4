//! Short execs in mode `proxy` beside busy processors: each one's TaskExit is published once, after
//! its exec-started, and ExecSync is as fast as with the stock shim.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use coroner_tests::containerd::{STOCK, WRAPPED};
use coroner_tests::cri::{Container, Cri};
use coroner_tests::events::{EXEC_ADDED, EXEC_STARTED, EXIT, Event, Events};
use coroner_tests::load::Load;
use coroner_tests::report::{print, timed};
use coroner_tests::times::Times;
use futures::future::{join_all, try_join_all};

use super::fixture::{END, Fixture, Mode, alone};

/// Execs in the gate; 17 % of them show a fault in the order of events. The long form is 20,000.
const EXECS: usize = 300;
const EXECS_VARIABLE: &str = "CORONER_TEST_EXECS";
/// Execs at once, of each shim. More would only wait for runc.
const AT_ONCE: usize = 2;
/// One exec in so many is the stock shim's.
const STOCK_SHARE: usize = 3;
/// As many as there are processors on the smallest machine we test on.
const BUSY: usize = 2;
/// Kubernetes' default for probes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What ExecSync answered.
#[derive(Default)]
struct Answers {
    times: Vec<Duration>,
    failed: usize,
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times: Times = self.times.iter().copied().collect();
        write!(f, "{} failed, ExecSync {times}", self.failed)
    }
}

impl Answers {
    async fn exec(&mut self, cri: &mut Cri, container: &Container) -> Result<()> {
        let begun = Instant::now();
        match cri.exec_sync(container, &["/bin/oomtest", "exit", "3"], PROBE_TIMEOUT).await {
            Ok(status) => {
                anyhow::ensure!(status == 3, "ExecSync answers the status {status}");
                self.times.push(begun.elapsed());
            }
            Err(error) => {
                print(format_args!("{} after {:?}: {error:#}", container.name, begun.elapsed()));
                self.failed += 1;
            }
        }
        Ok(())
    }
}

/// `count` execs in one container, `AT_ONCE` at a time.
async fn execs(cri: &Cri, container: &Container, count: usize) -> Result<Answers> {
    let lanes = (0..AT_ONCE).map(|lane| {
        let mut cri = cri.clone();
        async move {
            let mut answers = Answers::default();
            for _ in (lane..count).step_by(AT_ONCE) {
                answers.exec(&mut cri, container).await?;
            }
            Ok::<_, anyhow::Error>(answers)
        }
    });
    let mut all = Answers::default();
    for answers in try_join_all(lanes).await? {
        all.times.extend(answers.times);
        all.failed += answers.failed;
    }
    Ok(all)
}

/// What is wrong with the events of one container's execs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    execs: usize,
    exited_twice: usize,
    never_exited: usize,
    exited_before_start: usize,
    wrong_pid: usize,
}

impl Faults {
    fn of(events: &[Event]) -> Self {
        let mut by_exec: HashMap<&str, Vec<&Event>> = HashMap::new();
        for event in events {
            if let Some(exec) = &event.exec {
                by_exec.entry(exec).or_default().push(event);
            }
        }
        let mut faults = Self { execs: by_exec.len(), ..Self::default() };
        for events in by_exec.values() {
            let first = |topic: &str| events.iter().position(|it| it.topic == topic);
            let exits = events.iter().filter(|it| it.topic == EXIT).count();
            faults.exited_twice += usize::from(exits > 1);
            faults.never_exited += usize::from(exits == 0);
            let before = [EXEC_ADDED, EXEC_STARTED].map(first);
            let exit = first(EXIT);
            let ordered = before.iter().all(|at| at.is_some_and(|at| exit.is_none_or(|exit| at < exit)));
            faults.exited_before_start += usize::from(!ordered);
            let pid = |topic| first(topic).and_then(|at| events[at].pid);
            faults.wrong_pid += usize::from(exit.is_some() && pid(EXEC_STARTED) != pid(EXIT));
        }
        faults
    }
}

#[tokio::test]
async fn short_execs_exit_once_after_their_start() {
    let _turn = alone().await;
    let _timed = timed("short_execs_exit_once_after_their_start");
    let count = std::env::var(EXECS_VARIABLE).map_or(EXECS, |count| count.parse().unwrap());
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let mut containers = Vec::new();
    for (name, handler) in [("ours", WRAPPED), ("stock", STOCK)] {
        let pod = fixture.cri.run_pod_as(&fixture.containerd, name, handler).await.unwrap();
        let container = fixture.cri.run(&pod, name, 64, "await exit 0").await.unwrap();
        container.wait_printed("waiting", END).await.unwrap();
        containers.push(container);
    }
    let load = Load::start(BUSY).unwrap();
    let counts = [count, count / STOCK_SHARE];
    let variants =
        containers.iter().zip(counts).map(|(container, count)| execs(&fixture.cri, container, count));
    let answers = join_all(variants).await;
    drop(load);
    // A shim publishes all of its execs' events before the end of their container.
    let mut faults = Vec::new();
    for (container, answers) in containers.iter().zip(answers) {
        let answers = answers.unwrap();
        let exits = |seen: &[Event]| {
            let of_exec = |it: &&Event| it.topic == EXIT && it.container == container.id && it.exec.is_some();
            seen.iter().filter(of_exec).count() >= answers.times.len()
        };
        events.wait_until("the execs' exits", END, exits).await.unwrap();
        fixture.cri.stop(container, 0).await.unwrap();
        let exit = |it: &Event| it.topic == EXIT && it.container == container.id && it.exec.is_none();
        events.wait_until("the container's exit", END, |seen| seen.iter().any(exit)).await.unwrap();
        let found = Faults::of(&events.of(&container.id));
        print(format_args!("{}: {answers}; {found:?}", container.name));
        faults.push((answers, found));
    }
    let expired = fixture.router.logged("hold ended without a ruling").unwrap();
    print(format_args!("holds that were over before the ruling: {expired}"));
    let [(ours, found), (stock, _)] = &faults[..] else { panic!("two variants") };
    assert_eq!(*found, Faults { execs: found.execs, ..Faults::default() });
    assert!(found.execs >= ours.times.len(), "{} execs were added", found.execs);
    // Of what fails by the machine's load alone, stock has its share.
    assert!(
        ours.failed <= stock.failed * STOCK_SHARE + 1,
        "{} ExecSyncs failed, {} with stock",
        ours.failed,
        stock.failed
    );
    fixture.router.stop().await.unwrap();
}
