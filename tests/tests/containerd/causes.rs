//! What ended a container, as its audit record and `explain` state it, against what the case did.

use anyhow::{Context, Result};
use coroner_tests::agent::Agent;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Cri, Pod};
use coroner_tests::report::{print, timed};
use coroner_tests::router::Router;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::beside::{Coroner, END, alone, config, first_process};

/// Runs of each case in the gate; `CORONER_TEST_CAUSES` sets another number.
const RUNS: usize = 2;

/// What the case does to its container once that prints.
#[derive(Clone, Copy, Debug)]
enum Act {
    Nothing,
    /// CRI's StopContainer, with a second of grace.
    Stop,
    /// SIGKILL by this process to the first process.
    Kill,
}

#[derive(Debug)]
struct Case {
    name: &'static str,
    arguments: &'static str,
    act: Act,
    /// Printed before the act.
    printed: &'static str,
    /// `exited.cause.kind`; `None`: no signal ended it.
    cause: Option<&'static str>,
    /// The beginning of the verdict.
    verdict: &'static str,
}

const CASES: [Case; 7] = [
    Case {
        name: "oom",
        arguments: "self 64",
        act: Act::Nothing,
        printed: "",
        cause: Some("kernel-oom"),
        verdict: "OOM-killed: the kernel killed its first process",
    },
    Case {
        name: "code",
        arguments: "exit 137",
        act: Act::Nothing,
        printed: "",
        cause: None,
        verdict: "exited 137",
    },
    Case {
        name: "passed-on",
        arguments: "kill 9",
        act: Act::Nothing,
        printed: "",
        cause: None,
        verdict: "exited 137",
    },
    Case {
        name: "child-oom",
        arguments: "child 64 1 0",
        act: Act::Nothing,
        printed: "",
        cause: None,
        verdict: "exited 1, ",
    },
    Case {
        name: "stop",
        arguments: "await exit 0",
        act: Act::Stop,
        printed: "waiting",
        cause: Some("runtime"),
        verdict: "was ended by SIGKILL, sent ",
    },
    Case {
        name: "node",
        arguments: "await exit 0",
        act: Act::Kill,
        printed: "waiting",
        cause: Some("node-process"),
        verdict: "was ended by SIGKILL, sent by ",
    },
    Case {
        name: "crash",
        arguments: "crash",
        act: Act::Nothing,
        printed: "",
        cause: Some("crash"),
        verdict: "was ended by SIGSEGV, by a fault of its own",
    },
];

#[tokio::test]
async fn cause_of_each_end_is_what_the_case_did() {
    let _turn = alone().await;
    let _timed = timed("cause_of_each_end_is_what_the_case_did");
    let runs = std::env::var("CORONER_TEST_CAUSES").map_or(RUNS, |it| it.parse().unwrap());
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "causes").await.unwrap();
    let agent = Agent::start_traced(containerd.cgroup()).await.unwrap();
    let router = Router::start(&config(&containerd, &agent)).await.unwrap();
    let coroner = Coroner { agent, router };
    let (mut wrong, mut unknown) = (Vec::new(), 0);
    for run in 0..runs {
        for case in &CASES {
            let name = format!("{}-{run}", case.name);
            let (exited, verdict) = end(&mut cri, &pod, &coroner, case, &name).await.unwrap();
            let kind = exited["cause"]["kind"].as_str();
            if case.cause.is_some() && matches!(kind, None | Some("unknown")) {
                print(format_args!("{name}: {exited}; {verdict}"));
                unknown += 1;
            } else if kind != case.cause || !verdict.starts_with(case.verdict) {
                wrong.push(format!("{name}: {exited}; {verdict}"));
            }
        }
    }
    let all = runs * CASES.len();
    print(format_args!("{all} ends: {} wrong, {unknown} with an unknown cause", wrong.len()));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unknown * 10 <= all, "{unknown} of {all} causes are unknown");
}

/// The exit in the container's record, and the verdict of `explain`.
async fn end(
    cri: &mut Cri,
    pod: &Pod,
    coroner: &Coroner,
    case: &Case,
    name: &str,
) -> Result<(Value, String)> {
    let container = cri.run(pod, name, 32, case.arguments).await?;
    if !case.printed.is_empty() {
        container.wait_printed(case.printed, END).await?;
    }
    match case.act {
        Act::Nothing => {}
        Act::Stop => cri.stop(&container, 1).await?,
        Act::Kill => kill_process(first_process(pod, &container).await?, Signal::KILL)?,
    }
    let ruled = coroner.ruled("exited", &container).await?;
    let audit = coroner.router.path("audit.jsonl").display().to_string();
    let output = coroner.router.command(&["explain", &container.id, "--file", &audit])?;
    let text = String::from_utf8(output.stdout)?;
    let verdict = text.lines().find_map(|line| line.strip_prefix("verdict"));
    let verdict = verdict.with_context(|| format!("explain printed no verdict: {text}"))?.trim();
    Ok((ruled["signal"]["event"]["exited"].clone(), verdict.to_owned()))
}
