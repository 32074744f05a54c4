//! The admin server: docs/reference/admin-api.md is what it answers, within its limits.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use coroner_tests::page::Page;
use coroner_tests::router::Router;
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use serde_json::Value;

use super::fakes::FakeContainerd;
use super::{Fixture, text};

const PATIENCE: Duration = Duration::from_secs(30);
/// The socket as the page names it.
const SOCKET: &str = "/run/coroner/control.sock";

/// Runs a command of the page against this router.
fn run(router: &Router, command: &str) -> Output {
    let socket = router.path("control.sock").display().to_string();
    Command::new("sh").args(["-c", &command.replace(SOCKET, &socket)]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_api_page_commands_are_answered_in_json() {
    let page = Page::open("reference/admin-api.md").unwrap();
    let mut fixture = Fixture::start().await;
    fixture.kill("web", 1);
    fixture.exit("web", 1);
    fixture.dealt_with().await;
    for command in page.commands() {
        let output = if command.contains("/tap") {
            first_record(&mut fixture, &command).await
        } else {
            run(&fixture.router, &command)
        };
        assert!(output.status.success(), "{command}: {output:?}");
        let answer = serde_json::from_slice::<Value>(&output.stdout);
        assert!(answer.is_ok_and(|it| it.is_object()), "{command}: {output:?}");
    }
    fixture.router.stop().await.unwrap();
}

/// The first line of a stream, which would go on.
async fn first_record(fixture: &mut Fixture, command: &str) -> Output {
    let socket = fixture.router.path("control.sock").display().to_string();
    // Ended by time too: curl does not notice that nothing reads its output until it writes.
    let line = format!("timeout 20 {} | head -n 1", command.replace(SOCKET, &socket));
    let tap = Command::new("sh").args(["-c", &line]).stdout(Stdio::piped()).spawn().unwrap();
    let open = async || Ok((fixture.router.request(&["status"])?["taps"] == 1).then_some(()));
    until("the tap to be open", PATIENCE, open).await.unwrap();
    fixture.kill("web", 2);
    tap.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_on_the_page_and_has_an_example() {
    let page = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/admin-api.md"),
    )
    .unwrap();
    let mut fixture = Fixture::start().await;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(row, _)| row));
    let routes: Vec<_> =
        rows.filter_map(|row| row.split_once(' ')).filter(|(_, path)| path.starts_with('/')).collect();
    assert_eq!(routes.len(), 13, "{routes:?}");
    for (method, path) in routes {
        // Another method shows that the route exists, and changes nothing.
        let path = path.replace("NAME", "00-kubernetes");
        let command = format!(
            "curl -s -o /dev/null -w '%{{http_code}} %{{header_json}}' -X PUT --unix-socket {SOCKET} http://localhost{path}"
        );
        let answer = text(&run(&fixture.router, &command).stdout);
        assert!(answer.starts_with("405 ") && answer.contains(method), "{method} {path}: {answer}");
        // /metrics is text of a hundred lines.
        let example = page.contains(&format!("http://localhost{path}")) || path == "/metrics";
        assert!(example || path.contains("guests"), "{path} has no example");
    }
    fixture.router.stop().await.unwrap();
}

#[test]
fn status_at_a_silent_socket_fails_in_5_s_and_names_the_owner() {
    let scratch = Scratch::new().unwrap();
    let path = scratch.path("control.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let mut status = Command::new(coroner_tests::binary::find("coroner", "coroner-cli").unwrap());
    let output = status.arg("status").env("CORONER_SOCKET", &path).output().unwrap();
    let (took, stderr) = (begun.elapsed(), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(8), "{took:?}");
    let owner = format!("the socket belongs to pid {} (", std::process::id());
    assert!(stderr.contains(&path.display().to_string()) && stderr.contains(&owner), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// A configuration with all parts down: no agent, no containerd, a webhook that refuses.
const DOWN: &str = r#"
    node = "n"
    [policies]
    directory = "@DIR@/policies"
    cache = "@DIR@/cache"
    [control]
    socket = "@DIR@/control.sock"
    [metrics]
    address = "http://127.0.0.1:@PORT@"
    [containerd]
    address = "@DIR@/no-such.sock"
    ttrpc_address = "@DIR@/containerd.sock"
    [[source]]
    name = "node"
    type = "agent"
    address = "unix://@DIR@/agent.sock"
    mode = "sole"
    [[sink]]
    name = "containerd"
    type = "containerd"
    [[sink]]
    name = "pager"
    type = "webhook"
    url = "http://127.0.0.1:9/events"
    [[route]]
    topics = ["audit"]
    sinks = ["pager"]
"#;

async fn down() -> (Router, u16) {
    // Free a moment ago: the kernel gives the same port to no one else so soon.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let router = Router::start(&DOWN.replace("@PORT@", &port.to_string())).await.unwrap();
    (router, port)
}

/// A request over the metrics port.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_and_source_that_are_down_show_queue_and_reason() {
    let (mut router, port) = down().await;
    // The record of the first chain waits for the webhook.
    let queued = async || {
        let status = router.request(&["status"])?;
        Ok(Some(status)
            .filter(|it| it["sinks"][1]["queued"].as_u64() > Some(0) && it["sinks"][1]["failed"] != 0))
    };
    let status = until("a document to be queued", PATIENCE, queued).await.unwrap();
    let pager = &status["sinks"][1];
    assert!(pager["queued-since-ms"].as_u64().unwrap() > 1_700_000_000_000, "{pager}");
    assert!(pager["problem"].as_str().unwrap().contains("refused"), "{pager}");
    let down = async || {
        let status = router.request(&["status"])?;
        Ok(status["sources"][0]["problem"].as_str().map(str::to_owned))
    };
    let reason = until("the source's problem", PATIENCE, down).await.unwrap();
    assert!(reason.contains("No such file"), "{reason}");
    let shown = text(&router.command(&["status"]).unwrap().stdout);
    for due in ["QUEUED", "OLDEST", "sink pager: ", reason.as_str()] {
        assert!(shown.contains(due), "{due}\n{shown}");
    }
    let metrics = get(port, "/metrics");
    for due in [
        "coroner_sink_reachable{sink=\"pager\"} 0",
        "coroner_sink_reachable{sink=\"containerd\"} 0",
        "coroner_policies_refused 0",
        "coroner_policy_directory_failed 0",
    ] {
        assert!(metrics.lines().any(|line| line == due), "{due}\n{metrics}");
    }
    let queued = metrics.lines().find_map(|line| line.strip_prefix("coroner_sink_queued{sink=\"pager\"} "));
    assert!(queued.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
    drop(router.kill());
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_503_until_containerd_is_connected() {
    let (mut router, port) = down().await;
    let answer = get(port, "/ready");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("sink containerd is not connected"),
        "{answer}"
    );
    assert!(get(port, "/live").starts_with("HTTP/1.1 200"), "it lives all the same");
    let _served = FakeContainerd::serve(&router.path("containerd.sock"), 0).await;
    let ready = async || Ok(get(port, "/ready").starts_with("HTTP/1.1 200").then_some(()));
    until("the router to be ready", PATIENCE, ready).await.unwrap();
    drop(router.kill());
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_refused_and_directory_unread_show_in_metrics() {
    let (mut router, port) = down().await;
    router.drop_in("60-text.wasm", b"not a component").unwrap();
    let has = async |line: &'static str| {
        let shown = async || Ok(get(port, "/metrics").lines().any(|it| it == line).then_some(()));
        until(line, PATIENCE, shown).await.unwrap();
    };
    has("coroner_policies_refused 1").await;
    std::fs::rename(router.policies(), router.path("elsewhere")).unwrap();
    drop(router.command(&["policy", "reload"]).unwrap());
    has("coroner_policy_directory_failed 1").await;
    drop(router.kill());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_delay_a_scrape() {
    let (mut router, port) = down().await;
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let begun = Instant::now();
    assert!(get(port, "/metrics").starts_with("HTTP/1.1 200"));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?} with {} idle connections", idle.len());
    drop(router.kill());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_wrong_are_answered_with_error_and_hint() {
    let mut fixture = Fixture::start().await;
    let large = "x".repeat(70_000);
    for (arguments, code) in [
        ("http://localhost/nothing", 404),
        ("-X POST http://localhost/status", 405),
        ("http://localhost/tap?kind=oom", 400),
        ("http://localhost/tap?colour=red", 400),
        ("-X POST http://localhost/policies/00-kubernetes/promote?force=maybe", 400),
        ("-d nonsense http://localhost/guests", 400),
        ("-X DELETE http://localhost/guests/unknown", 404),
        (&format!("-d {large} http://localhost/guests"), 413),
    ] {
        let command = format!("curl -s -w '\\n%{{http_code}}' --unix-socket {SOCKET} {arguments}");
        let answer = text(&run(&fixture.router, &command.replace('?', "\\?")).stdout);
        let (body, status) = answer.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(status, code.to_string(), "{body}");
        let body: Value = serde_json::from_str(body).unwrap();
        let has = |key: &str| body[key].as_str().is_some_and(|it| !it.is_empty());
        assert!(has("error") && has("hint"), "{body}");
    }
    let head = run(&fixture.router, &format!("curl -sI --unix-socket {SOCKET} http://localhost/status"));
    let head = text(&head.stdout);
    assert!(head.starts_with("HTTP/1.1 200") && head.trim_end().lines().count() < 6, "{head}");
    fixture.router.stop().await.unwrap();
}
