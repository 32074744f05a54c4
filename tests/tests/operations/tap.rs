//! `coroner tap` on a running router.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use coroner_tests::report::say;
use coroner_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Stand;

/// What comes within this comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines that wait for the test to look at them.
const LINES: usize = 65_536;

/// A tap that reads along. Dropped, it is ended.
struct Tap {
    child: Child,
    out: Option<Receiver<String>>,
    said: Receiver<String>,
}

impl Tap {
    /// Starts it, and waits until it reads.
    fn start(stand: &Stand, arguments: &[&str]) -> Self {
        let mut command = Command::new(stand.router.binary());
        command.arg("tap").args(arguments).env("CORONER_SOCKET", stand.router.path("control.sock"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let said = lines(child.stderr.take().unwrap());
        let tap = Self { child, out: Some(out), said };
        assert_eq!(tap.says(), "coroner: reading along; interrupt to end");
        tap
    }

    fn line(&self) -> String {
        self.out.as_ref().unwrap().recv_timeout(PATIENCE).expect("a line in time")
    }

    fn says(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("a word in time")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn code(&mut self) -> Option<i32> {
        let ended = async || Ok(self.child.try_wait()?);
        until("the tap to end", PATIENCE, ended).await.unwrap().code()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Read on a thread of their own, which ends with the pipe or with who takes them.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = sync_channel(LINES);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn rulings_and_deliveries_are_shown_as_they_happen() {
    let mut stand = Stand::start().await;
    let tap = Tap::start(&stand, &[]);
    stand.kill("web", 1);
    let shown = tap.line();
    assert!(shown.contains("Z  web  OOM kill, counter +1 to 1"), "{shown}");
    let ruled = "| 00-kubernetes: task-oom, because the kernel's OOM kill counter rose by 1 | /tasks/oom queued for containerd";
    assert!(shown.ends_with(ruled), "{shown}");
    let shown = tap.line();
    assert!(shown.trim_start().starts_with("web  containerd took /tasks/oom: 1 try, "), "{shown}");
    stand.exit("web", 1);
    assert!(tap.line().contains("web  exited with status 1 |"));
    stand.router.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_and_machines_get_the_audit_records() {
    let mut stand = Stand::start().await;
    let of_web = Tap::start(&stand, &["--json", "--container", "we"]);
    let exits = Tap::start(&stand, &["--json", "--kind", "exited"]);
    let of_a_pod = Tap::start(&stand, &["--json", "--pod", "web"]);
    for container in ["job", "web"] {
        stand.kill(container, 1);
        stand.exit(container, 0);
    }
    stand.written("/tasks/oom", 2).await;
    stand.written("/tasks/exit", 2).await;
    let audit = stand.router.audit().unwrap();
    let ids = |container: &str| {
        let ours =
            |it: &&Value| it["record"] != "chain" && it.to_string().contains(&format!(":{container}:"));
        audit.iter().filter(ours).cloned().collect::<Vec<Value>>()
    };
    let next = |tap: &Tap| serde_json::from_str::<Value>(&tap.line()).unwrap();
    // What was told before and is not wanted would have come before.
    let web: Vec<Value> = (0..4).map(|_| next(&of_web)).collect();
    assert_eq!(web, ids("web"));
    for _ in 0..4 {
        let record = next(&exits);
        let of_exit = record["signal"]["event"]["exited"].is_object() || record["topic"] == "/tasks/exit";
        assert!(of_exit, "{record}");
    }
    assert!(of_a_pod.out.as_ref().unwrap().try_recv().is_err(), "nobody knows of a pod here");
    let wrong = stand.router.command(&["tap", "--kind", "oom"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    stand.router.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_it_is_interrupted_when_nobody_reads_and_when_the_router_stops() {
    let mut stand = Stand::start().await;
    let mut interrupted = Tap::start(&stand, &[]);
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.code().await, Some(0));

    // The reading end of the pipe is closed with this: nothing needs to be written for that to show.
    let mut command = Command::new(stand.router.binary());
    command.arg("tap").env("CORONER_SOCKET", stand.router.path("control.sock"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = lines(child.stderr.take().unwrap());
    let mut unread = Tap { child, out: None, said };
    assert_eq!(unread.code().await, Some(0));
    assert!(unread.said.iter().all(|line| line.contains("reading along")), "no complaint");

    let mut left = Tap::start(&stand, &[]);
    stand.router.stop().await.unwrap();
    assert_eq!(left.code().await, Some(1));
    assert!(left.says().starts_with("coroner: the router"));
    let nobody = stand.router.command(&["tap"]).unwrap();
    assert_eq!(nobody.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_that_is_too_slow_is_told_how_many_records_it_missed() {
    const KILLS: u64 = 3_000;
    let mut stand = Stand::start().await;
    let tap = Tap::start(&stand, &["--json"]);
    stand.kill("web", 1);
    tap.line();
    tap.line();
    tap.signal(Signal::STOP);
    for total in 2..=KILLS {
        stand.kill("web", total);
    }
    stand.dealt_with().await;
    tap.signal(Signal::CONT);
    let said = tap.says();
    let missed: u64 = said.split("too slow: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let due = 2 * (KILLS - 1) - missed;
    for _ in 0..due {
        tap.line();
    }
    say(format_args!("{missed} records missed, {due} shown"));
    assert!(missed > 0 && due >= 4_096, "{missed} missed, {due} shown");
    stand.router.stop().await.unwrap();
}
