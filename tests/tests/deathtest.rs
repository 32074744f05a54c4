//! The program `deathtest` on the newest containerd: stock shims beside proxied ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Result;
use coroner_tests::binary;
use coroner_tests::containerd::{BUSYBOX, Containerd, Release, STOCK, Setting, WRAPPED};
use coroner_tests::process::Process;
use coroner_tests::report::{print, timed};
use coroner_tests::router::{Router, usual};
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use k8s_cri::v1::ListPodSandboxRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::Value;

/// The cases with an OOM kill of one process; the kill of a group needs cgroup v2.
const OOM: [&str; 3] = ["oom-pid-1", "oom-child-exit-1", "oom-child-exit-0-later"];
/// A pod starts within a second; this allows for a machine that builds Rust beside.
const PATIENCE: Duration = Duration::from_secs(30);

/// A containerd with two handlers, stock and proxied, and the router that proxied shims publish at.
/// The router is ended first.
struct Fixture {
    _router: Router,
    containerd: Containerd,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let socket = scratch.path("shim.sock").display().to_string();
        let shim = format!("mode = \"proxy\"\nsocket = \"{socket}\"\nlog = \"@DIR@/shim.log\"\n");
        let containerd = start(Setting::default().wrapped(&shim)).await?;
        let source = format!(
            "[[source]]\nname = \"shims\"\ntype = \"shim\"\naddress = \"unix://{socket}\"\nmode = \"proxy\"\n"
        );
        let config = format!("{}\n{source}", usual("test-node", &containerd.socket()));
        Ok(Self { _router: Router::start_in(scratch, &config).await?, containerd })
    }
}

async fn start(setting: Setting) -> Result<Containerd> {
    let containerd = Containerd::start_as(&setting.of(Release::newest())).await?;
    containerd.import_busybox()?;
    Ok(containerd)
}

fn program() -> Command {
    Command::new(binary::find("deathtest", "coroner-deathtest").unwrap())
}

/// `deathtest run` against this containerd, in its cgroup.
fn run(containerd: &Containerd, handlers: &[&str], arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["run", "--image", BUSYBOX, "--endpoint"]);
    command.arg(format!("unix://{}", containerd.socket().display()));
    command.arg(format!("--cgroup-parent=/{}", containerd.cgroup()));
    command.args(handlers.iter().flat_map(|handler| ["--handler", handler])).args(arguments);
    command
}

/// The document that it prints, after it ended with `code` or another one that is listed.
fn document(output: &Output, codes: &[i32]) -> Value {
    let code = output.status.code().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(codes.contains(&code), "exit code {code}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The counts of a handler's cases by their names; cases that do not apply have none.
fn counts(document: &Value, handler: &str) -> Vec<(String, Value)> {
    let handlers = document["handlers"].as_array().unwrap().iter();
    let handler = handlers.into_iter().find(|it| it["name"] == handler).unwrap();
    let cases = handler["cases"].as_array().unwrap().iter();
    let counted = cases.filter(|case| case["not-applicable"].is_null());
    counted.map(|case| (case["name"].as_str().unwrap().to_owned(), case["counts"].clone())).collect()
}

/// Runs both handlers, prints their card, and checks what is promised of each.
fn both(fixture: &Fixture, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--format", "json"]].concat();
    let output = run(&fixture.containerd, &[STOCK, WRAPPED], &arguments).output().unwrap();
    // Stock may lose kills, which is exit code 1.
    let document = document(&output, &[0, 1]);
    print(format_args!("{} {arguments:?}", document["runtime"]));
    for handler in [STOCK, WRAPPED] {
        for (case, counts) in counts(&document, handler) {
            print(format_args!("{handler:<8} {case:<24} {}", nonzero(&counts)));
            let is_checked = handler == WRAPPED || !OOM.contains(&case.as_str());
            for verdict in ["lost", "false", "wrong"].iter().filter(|_| is_checked) {
                assert_eq!(counts[*verdict], 0, "{handler} {case}: {verdict}\n{document:#}");
            }
            assert_ne!(counts["n"], 0, "{handler} {case}");
        }
    }
    // Each kill is read in the kernel's log, and none is only assumed.
    for container in document["containers"].as_array().unwrap() {
        assert!(container["evidence"]["assumed"].is_null(), "{container:#}");
    }
    document
}

/// `n 3, ok 3`.
fn nonzero(counts: &Value) -> String {
    let counts = counts.as_object().unwrap().iter().filter(|(_, count)| **count != 0);
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn proxied_containers_are_reported_right() {
    let _timed = timed("proxied_containers_are_reported_right");
    let fixture = Fixture::start().await.unwrap();
    let document = both(&fixture, &[]);
    // The host has cgroup v1: the kill of a group is the one case that does not apply.
    let proxied = counts(&document, WRAPPED);
    assert_eq!(proxied.len(), 10, "{document:#}");
    assert!(proxied.iter().any(|(_, counts)| counts["ok"] == 1), "{document:#}");
    both(&fixture, &["--case", OOM[0], "--case", OOM[1], "--count", "3", "--busy", "2"]);
    assert_eq!(pods(&fixture.containerd).await, 0);
}

#[tokio::test]
async fn wrong_expectation_is_found() {
    let _timed = timed("wrong_expectation_is_found");
    let containerd = start(Setting::default()).await.unwrap();
    let file = containerd.path("cases.toml");
    let case = |status: u8| {
        format!(
            "[[case]]\nname = \"exit-{status}\"\ncommand = [\"/bin/sh\", \"-c\", \"exit 7\"]\n\
             memory = \"16Mi\"\nreason = \"Error\"\nstatus = {status}\nproof = \"none\"\n"
        )
    };
    fs::write(&file, case(7) + &case(8)).unwrap();
    let cases = ["--cases", file.to_str().unwrap()];

    let arguments = [&cases[..], &["--format", "json"]].concat();
    let document = document(&run(&containerd, &[STOCK], &arguments).output().unwrap(), &[1]);
    let verdicts: Vec<(String, u64)> = counts(&document, STOCK)
        .into_iter()
        .map(|(case, counts)| (case, counts["wrong"].as_u64().unwrap()))
        .collect();
    assert_eq!(verdicts, [("exit-7".to_owned(), 0), ("exit-8".to_owned(), 1)]);
    assert_eq!(document["containers"][1]["verdict"], "wrong");

    // Without the kernel log a case is taken for the truth.
    let killed = case(7).replace("\"Error\"", "\"OOMKilled\"").replace("\"none\"", "\"oom-kill\"");
    fs::write(&file, killed).unwrap();
    let assumed = self::document(
        &run(&containerd, &[STOCK], &[&arguments[..], &["--no-kernel-log"]].concat()).output().unwrap(),
        &[1],
    );
    assert_eq!(assumed["containers"][0]["verdict"], "lost");
    fs::write(&file, case(7) + &case(8)).unwrap();

    // The card for a person names the container.
    let output = run(&containerd, &[STOCK], &cases).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    print(format_args!("{text}"));
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().last().unwrap();
    for cell in ["exit-8", "wrong", "Error/7", "Error/8", "no OOM kill in the kernel log"] {
        assert!(line.contains(cell), "{cell}: {line}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn interrupted_run_removes_its_pods() {
    let _timed = timed("interrupted_run_removes_its_pods");
    let containerd = start(Setting::default()).await.unwrap();
    let file = containerd.path("cases.toml");
    let case = "[[case]]\nname = \"sleeps\"\ncommand = [\"/bin/sleep\", \"600\"]\nmemory = \"16Mi\"\n\
                reason = \"Completed\"\nstatus = 0\nproof = \"none\"\n";
    fs::write(&file, case).unwrap();
    let mut command = run(&containerd, &[], &["--cases", file.to_str().unwrap()]);
    let mut deathtest = Process::start("deathtest", &mut command, &containerd.path("deathtest.log")).unwrap();
    until("deathtest to start its pod", PATIENCE, async || Ok((pods(&containerd).await > 0).then_some(())))
        .await
        .unwrap();
    let status = deathtest.terminate(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(pods(&containerd).await, 0);
}

#[test]
fn absent_endpoint_is_reported() {
    let output = program().args(["run", "--endpoint", "unix:///no/such.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let expect = "deathtest: the CRI runtime at unix:///no/such.sock does not answer: check --endpoint, that \
                  the runtime runs, and that you are root: No such file or directory (os error 2)\n";
    assert_eq!(text, expect);
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let missing: PathBuf = "/no/such/cases.toml".into();
    for arguments in [
        vec!["run", "--case", "no-such-case"],
        vec!["run", "--handler", "runc", "--handler", "runc"],
        vec!["run", "--count", "0"],
        vec!["list", "--cases", missing.to_str().unwrap()],
        vec![],
    ] {
        let output = program().args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let list = program().arg("list").output().unwrap();
    let text = String::from_utf8(list.stdout).unwrap();
    assert!(list.status.success() && OOM.iter().all(|case| text.contains(case)), "{text}");
}

/// The pods that containerd has.
async fn pods(containerd: &Containerd) -> usize {
    let channel = containerd_client::connect(containerd.socket()).await.unwrap();
    let mut runtime = RuntimeServiceClient::new(channel);
    let answer = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    answer.into_inner().items.len()
}
