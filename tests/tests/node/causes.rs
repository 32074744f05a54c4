//! What ended a container, as its audit record and `explain` state it, against what was done to it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use coroner_tests::node::Node;
use coroner_tests::program;
use coroner_tests::report::{print, timed};
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use serde_json::Value;

use crate::deaths::configure;
use crate::kernel::{AUDIT, PUBLISHED, id};
use crate::{installed, script};

const RUNS_VARIABLE: &str = "CORONER_TEST_CAUSES";
/// Runs of each case in the gate.
const RUNS: usize = 2;

/// What is right of a case of `causes.sh`, or of `deathtest`.
struct Case {
    name: &'static str,
    /// `exited.cause.kind`; `None`: no signal ended it.
    cause: Option<&'static str>,
    /// `oom-kill.level` of each kill; `None`: no kill.
    level: Option<&'static str>,
    /// TaskOOMs that the router publishes of it.
    task_ooms: usize,
    /// The beginning of `explain`'s verdict, and a part of it.
    verdict: [&'static str; 2],
    /// The name of another line of `explain`, and a part of it.
    line: Option<[&'static str; 2]>,
}

const fn killed(name: &'static str, level: &'static str, verdict: [&'static str; 2]) -> Case {
    Case { name, cause: Some("kernel-oom"), level: Some(level), task_ooms: 1, verdict, line: None }
}

const fn ended(name: &'static str, cause: &'static str, verdict: [&'static str; 2]) -> Case {
    Case { name, cause: Some(cause), level: None, task_ooms: 0, verdict, line: None }
}

const fn exited(name: &'static str, level: Option<&'static str>, verdict: [&'static str; 2]) -> Case {
    Case { name, cause: None, level, task_ooms: level.is_some() as usize, verdict, line: None }
}

const FIRST: &str = "OOM-killed: the kernel killed its first process";
const WHOLE: &str = "OOM-killed: the kernel killed the whole container";
const BY_SIGKILL: &str = "was ended by SIGKILL, sent by ";
const OUTSIDE: &str = " outside of the container";
const RUNTIME: &str = " container runtime";

const MADE: [Case; 16] = [
    killed("oom-own-limit", "container", [FIRST, " at its limit of 8 MiB"]),
    killed("oom-group", "container", [WHOLE, " at its limit of 8 MiB"]),
    Case {
        line: Some(["limits", "64 MiB, then 8 MiB "]),
        ..killed("oom-resized", "container", [FIRST, " at its limit of 8 MiB"])
    },
    Case {
        line: Some(["taken by", "/cri-containerd-9"]),
        ..killed("oom-neighbour", "ancestor", [FIRST, " at the limit of 48 MiB of a cgroup above it"])
    },
    killed("oom-limit-above", "ancestor", [FIRST, " at the limit of 12 MiB of a cgroup above it"]),
    killed("oom-limit-below", "child", [FIRST, " at a limit of 8 MiB within it"]),
    Case {
        task_ooms: 0,
        ..exited(
            "oom-within",
            Some("child"),
            ["exited 0, ", " of a child (tail) at a limit of 8 MiB within it"],
        )
    },
    killed("oom-machine", "guest", [FIRST, " because the machine had no memory left"]),
    ended("process-within", "container-process", [BY_SIGKILL, " of the container"]),
    ended("process-of-node", "node-process", [BY_SIGKILL, OUTSIDE]),
    ended("cgroup-kill", "cgroup-kill", ["was ended by SIGKILL, by ", " through cgroup.kill"]),
    Case {
        level: Some("container"),
        task_ooms: 1,
        ..ended(
            "oom-policy",
            "oom-policy",
            ["was ended by SIGKILL, by systemd, which stopped its unit", " an OOM kill of a child (tail)"],
        )
    },
    ended("oomd", "oomd", ["was ended by SIGKILL, by systemd-oomd", ""]),
    ended("seccomp", "seccomp", ["was ended by SIGSYS, for a forbidden system call", ""]),
    ended("resource-limit", "resource-limit", ["was ended by SIGKILL, at a resource limit", ""]),
    ended("crash", "crash", ["was ended by SIGSEGV, by a fault of its own", ""]),
];

/// Those of `deathtest`'s cases; CRI and its runtime end them.
const IN_CRI: [Case; 11] = [
    killed("oom-pid-1", "container", [FIRST, " at its limit of 16 MiB"]),
    killed("oom-group", "container", [WHOLE, " at its limit of 16 MiB"]),
    exited("oom-child-exit-1", Some("container"), ["exited 1, ", " after an OOM kill of a child (dd)"]),
    exited("oom-child-exit-0-later", Some("container"), ["exited 0, ", " an OOM kill of a child (dd)"]),
    exited("exit-0", None, ["exited 0", ""]),
    exited("exit-7", None, ["exited 7", ""]),
    exited("exit-137", None, ["exited 137", ""]),
    ended("killed-from-host", "node-process", ["was ended by SIGKILL, sent by deathtest ", OUTSIDE]),
    ended("stop-ignores-term", "runtime", ["was ended by SIGKILL, sent ", RUNTIME]),
    ended("stop-at-once", "runtime", ["was ended by SIGKILL, sent ", RUNTIME]),
    exited("stop-obeys-term", None, ["exited 143", ""]),
];

/// A container that ended, and what was done to it.
struct Death {
    case: &'static Case,
    id: String,
    /// The process that sent the signal, where one did.
    sender: Option<(u64, String)>,
}

/// What the audit file has of a container.
#[derive(Default)]
struct Recorded {
    levels: Vec<String>,
    task_ooms: usize,
    /// The event `exited` of its first process.
    exited: Option<Value>,
}

fn recorded(node: &Node) -> Result<BTreeMap<String, Recorded>> {
    let mut all = BTreeMap::<String, Recorded>::new();
    let audit = node.run(&format!("cat {AUDIT}"))?;
    // A last line may not be whole yet.
    let whole = audit.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let mut record: Value = serde_json::from_str(line)?;
        let actions = record["actions"].take();
        let signal = &mut record["signal"];
        let Some(id) = signal["target"]["container-id"].as_str().map(str::to_owned) else { continue };
        let of = all.entry(id).or_default();
        let actions = actions.as_array().into_iter().flatten();
        of.task_ooms += actions.filter(|action| *action == "task-oom").count();
        let event = &mut signal["event"];
        if let Some(kill) = event.get("oom-kill") {
            of.levels.extend(kill["level"].as_str().map(str::to_owned));
        } else if event["exited"]["is-init"] == true {
            // A repeated id is audited too.
            of.exited.get_or_insert(event["exited"].take());
        }
    }
    Ok(all)
}

/// What `explain` prints of each container, by id.
fn explained(node: &Node, deaths: &[Death]) -> Result<BTreeMap<String, String>> {
    let ids: Vec<&str> = deaths.iter().map(|it| it.id.as_str()).collect();
    let each = "do echo \"explained $id\"; coroner explain $id; done";
    let printed = node.run(&format!("for id in {}; {each}", ids.join(" ")))?;
    let mut explained = BTreeMap::new();
    for part in printed.split("explained ").skip(1) {
        let (id, text) = part.split_once('\n').context("a line for each id")?;
        explained.insert(id.to_owned(), text.to_owned());
    }
    Ok(explained)
}

/// A line of `explain`, without its name.
fn line<'a>(explained: &'a str, name: &str) -> Option<&'a str> {
    explained.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// How a death was recorded and explained.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Right,
    /// Less is stated than what was done, and nothing of it is wrong.
    Unknown,
    Wrong(String),
}

fn judge(death: &Death, recorded: Option<&Recorded>, explained: Option<&String>) -> Judgement {
    let Death { case, sender, .. } = death;
    let judge = || -> Result<Judgement> {
        let recorded = recorded.context("no record")?;
        let exited = recorded.exited.as_ref().context("no exit")?;
        let explained = explained.context("not explained")?;
        let verdict = line(explained, "verdict").context("no verdict")?;
        let seen = || format!("{exited}; levels {:?}; {explained}", recorded.levels);
        // A report of the counter alone may have no level.
        let levels = recorded.levels.iter().map(String::as_str).filter(|it| *it != "unknown");
        let levels: BTreeSet<&str> = levels.collect();
        ensure!(levels.into_iter().eq(case.level), "level: {}", seen());
        ensure!(recorded.task_ooms == case.task_ooms, "{} TaskOOMs: {}", recorded.task_ooms, seen());
        let kind = exited["cause"]["kind"].as_str().filter(|it| *it != "unknown");
        let [start, part] = case.verdict;
        // A shim's status may be ruled before the agent reports whether a signal ended it.
        let status = format!("ended with status {}", exited["status"]);
        let is_status = exited["by-signal"].is_null() && verdict.starts_with(&status);
        if is_status && (kind.is_none() || kind == case.cause) {
            return Ok(Judgement::Unknown);
        }
        if case.cause.is_some() && kind.is_none() {
            let is_true = ["was ended by SIG", start].iter().any(|it| verdict.starts_with(it));
            ensure!(is_true, "verdict: {}", seen());
            return Ok(Judgement::Unknown);
        }
        ensure!(kind == case.cause, "cause: {}", seen());
        ensure!(verdict.starts_with(start) && verdict.contains(part), "verdict: {}", seen());
        if let Some((pid, comm)) = sender {
            let sender = &exited["cause"]["sender"];
            ensure!(sender["pid"] == *pid && sender["comm"] == **comm, "sender: {}", seen());
        }
        if let Some([name, part]) = case.line {
            let line = line(explained, name).with_context(seen)?;
            ensure!(line.contains(part), "{name}: {}", seen());
        }
        Ok(Judgement::Right)
    };
    judge().unwrap_or_else(|error| Judgement::Wrong(format!("{}: {error:#}", case.name)))
}

/// Waits until the exit of each is recorded; fails unless nothing that is stated is wrong, and most
/// causes are stated. An emulated machine is slow: how many is printed.
fn check(node: &Node, what: &str, deaths: &[Death]) {
    let all_recorded = async || {
        let all = recorded(node)?;
        let has_exit = |id: &String| all.get(id).is_some_and(|it| it.exited.is_some());
        Ok(deaths.iter().all(|it| has_exit(&it.id)).then_some(all))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = runtime.block_on(until("all exits to be recorded", PUBLISHED, all_recorded));
    let all = all.or_else(|_| recorded(node)).unwrap();
    let explained = explained(node, deaths).unwrap();
    let (mut wrong, mut unknown) = (Vec::new(), BTreeMap::<&str, usize>::new());
    let mut right = BTreeSet::new();
    for death in deaths {
        match judge(death, all.get(&death.id), explained.get(&death.id)) {
            Judgement::Right => drop(right.insert(death.case.name)),
            Judgement::Unknown => *unknown.entry(death.case.name).or_default() += 1,
            Judgement::Wrong(mistake) => wrong.push(mistake),
        }
    }
    let count = deaths.len();
    print(format_args!("{what}: {count} deaths, {} wrong, cause unknown of {unknown:?}", wrong.len()));
    assert!(wrong.is_empty(), "{wrong:#?}");
    // At its hard limit of processor time a process is gone before its time can be read.
    unknown.remove("resource-limit");
    assert!(unknown.keys().all(|case| right.contains(case)), "never known: {unknown:?}, {right:?}");
    assert!(unknown.values().sum::<usize>() * 4 <= count, "{unknown:?} of {count}");
}

#[test]
fn cause_and_verdict_are_what_was_done() {
    let _timed = timed("cause_and_verdict_are_what_was_done");
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS, |it| it.parse().unwrap());
    let node = &installed("causes");
    configure(node);
    node.copy(&script("causes.sh"), "/tmp/causes.sh").unwrap();
    let scratch = Scratch::new().unwrap();
    std::fs::write(scratch.path("oomtest"), program::oomtest().unwrap()).unwrap();
    node.copy(&scratch.path("oomtest"), "/tmp/oomtest").unwrap();
    let mut deaths = Vec::new();
    for run in 0..runs {
        let made = MADE.iter().enumerate().map(|(at, case)| (case, id(3000 + run * MADE.len() + at)));
        let made: Vec<_> = made.collect();
        let lines = made.iter().map(|(case, id)| format!("{} {id}", case.name));
        let lines = lines.collect::<Vec<_>>().join("\\n");
        let run = "while read case id; do echo \"$case $(sh /tmp/causes.sh $case $id)\"; done";
        let printed = node.run(&format!("printf '{lines}\\n' > /tmp/causes; {run} < /tmp/causes")).unwrap();
        assert_eq!(printed.lines().count(), made.len(), "{printed}");
        for ((case, id), line) in made.into_iter().zip(printed.lines()) {
            let mut words = line.split(' ').skip(1);
            let sender = words.next().and_then(|pid| Some((pid.parse().ok()?, words.next()?.to_owned())));
            deaths.push(Death { case, id, sender });
        }
    }
    check(node, "made by hand", &deaths);
}

/// The containers of a document of `deathtest` that ran while agent and router did.
pub(crate) fn check_deathtest(node: &Node, document: &Value) {
    let _timed = timed("check_deathtest");
    let containers = document["containers"].as_array().unwrap().iter();
    let deaths = containers.filter_map(|container| {
        let case = IN_CRI.iter().find(|it| container["case"] == it.name)?;
        Some(Death { case, id: container["id"].as_str().unwrap().to_owned(), sender: None })
    });
    let deaths: Vec<Death> = deaths.collect();
    assert_eq!(deaths.len(), document["containers"].as_array().unwrap().len(), "a case without a cause");
    check(node, "by CRI", &deaths);
}
