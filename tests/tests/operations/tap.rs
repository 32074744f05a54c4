//! `coroner tap` on a running router.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use coroner_tests::report::print;
use coroner_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Fixture;

/// What comes within this comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines that wait for the test to read them.
const LINES: usize = 65_536;

/// A tap that reads along. Dropped, it is ended.
struct Tap {
    child: Child,
    out: Option<Receiver<String>>,
    stderr: Receiver<String>,
}

impl Tap {
    /// Starts it, and waits until it reads.
    fn start(fixture: &Fixture, arguments: &[&str]) -> Self {
        let mut command = Command::new(fixture.router.binary());
        command.arg("tap").args(arguments).env("CORONER_SOCKET", fixture.router.path("control.sock"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        let tap = Self { child, out: Some(out), stderr };
        assert_eq!(tap.stderr_line(), "coroner: reading along; interrupt to end");
        tap
    }

    fn line(&self) -> String {
        self.out.as_ref().unwrap().recv_timeout(PATIENCE).expect("a line in time")
    }

    fn stderr_line(&self) -> String {
        self.stderr.recv_timeout(PATIENCE).expect("a word in time")
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

/// Reads on a thread of their own, which ends with the pipe or with the receiver.
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
    let mut fixture = Fixture::start().await;
    let tap = Tap::start(&fixture, &[]);
    fixture.kill("web", 1);
    let shown = tap.line();
    assert!(shown.contains("Z  web  OOM kill, counter +1 to 1"), "{shown}");
    let ruled = "| 00-kubernetes: task-oom, because the kernel's OOM kill counter rose by 1 | /tasks/oom queued for containerd";
    assert!(shown.ends_with(ruled), "{shown}");
    let shown = tap.line();
    assert!(shown.trim_start().starts_with("web  containerd took /tasks/oom: 1 try, "), "{shown}");
    fixture.exit("web", 1);
    assert!(tap.line().contains("web  exited with status 1 |"));
    fixture.router.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_apply_and_json_prints_the_audit_records() {
    let mut fixture = Fixture::start().await;
    let of_web = Tap::start(&fixture, &["--json", "--container", "we"]);
    let exits = Tap::start(&fixture, &["--json", "--kind", "exited"]);
    let of_a_pod = Tap::start(&fixture, &["--json", "--pod", "web"]);
    for container in ["job", "web"] {
        fixture.kill(container, 1);
        fixture.exit(container, 0);
    }
    fixture.written("/tasks/oom", 2).await;
    fixture.written("/tasks/exit", 2).await;
    let audit = fixture.router.audit().unwrap();
    let ids = |container: &str| {
        let ours =
            |it: &&Value| it["record"] != "chain" && it.to_string().contains(&format!(":{container}:"));
        audit.iter().filter(ours).map(Value::to_string).collect::<Vec<String>>()
    };
    let next = |tap: &Tap| serde_json::from_str::<Value>(&tap.line()).unwrap();
    // What was emitted before and is not wanted would have come before.
    // A ruling and the delivery before it are in no order.
    let sorted = |mut records: Vec<String>| {
        records.sort_unstable();
        records
    };
    let web: Vec<String> = (0..4).map(|_| next(&of_web).to_string()).collect();
    assert_eq!(sorted(web), sorted(ids("web")));
    for _ in 0..4 {
        let record = next(&exits);
        let of_exit = record["signal"]["event"]["exited"].is_object() || record["topic"] == "/tasks/exit";
        assert!(of_exit, "{record}");
    }
    assert!(of_a_pod.out.as_ref().unwrap().try_recv().is_err(), "no pod is known here");
    let wrong = fixture.router.command(&["tap", "--kind", "oom"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    fixture.router.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tap_ends_on_interrupt_closed_pipe_or_router_stop() {
    let mut fixture = Fixture::start().await;
    let mut interrupted = Tap::start(&fixture, &[]);
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.code().await, Some(0));

    // The reading end of the pipe is closed with this: nothing needs to be written for that to
    // show.
    let mut command = Command::new(fixture.router.binary());
    command.arg("tap").env("CORONER_SOCKET", fixture.router.path("control.sock"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let stderr = lines(child.stderr.take().unwrap());
    let mut unread = Tap { child, out: None, stderr };
    assert_eq!(unread.code().await, Some(0));
    assert!(unread.stderr.iter().all(|line| line.contains("reading along")), "no complaint");

    let mut left = Tap::start(&fixture, &[]);
    fixture.router.stop().await.unwrap();
    assert_eq!(left.code().await, Some(1));
    assert!(left.stderr_line().starts_with("coroner: the router"));
    let without_router = fixture.router.command(&["tap"]).unwrap();
    assert_eq!(without_router.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_tap_is_sent_the_number_of_missed_records() {
    const KILLS: u64 = 3_000;
    let mut fixture = Fixture::start().await;
    let tap = Tap::start(&fixture, &["--json"]);
    fixture.kill("web", 1);
    tap.line();
    tap.line();
    tap.signal(Signal::STOP);
    for total in 2..=KILLS {
        fixture.kill("web", total);
    }
    fixture.dealt_with().await;
    tap.signal(Signal::CONT);
    let stderr = tap.stderr_line();
    let missed: u64 = stderr.split("too slow: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let due = 2 * (KILLS - 1) - missed;
    for _ in 0..due {
        tap.line();
    }
    print(format_args!("{missed} records missed, {due} shown"));
    assert!(missed > 0 && due >= 4_096, "{missed} missed, {due} shown");
    fixture.router.stop().await.unwrap();
}
