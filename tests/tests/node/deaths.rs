//! Deaths on the node in each mode, judged by the kernel log: the program `deathtest`.

use coroner_tests::node::Node;
use coroner_tests::report::{print, timed};
use serde_json::Value;

use crate::{causes, file, installed, kernel};

const DEATHS_VARIABLE: &str = "CORONER_TEST_DEATHS";
/// Under emulation a container needs four seconds, and three times that beside busy loops.
const DEATHS: u32 = 1;
/// Handlers: `runc` is the stock shim, in mode `beside` while the router runs.
pub(crate) const HANDLERS: [&str; 3] = ["runc", "wrapped", "proxied"];
const KILLS: [&str; 3] = ["oom-pid-1", "oom-child-exit-1", "oom-group"];

/// ssh's own exit code.
const SSH_FAILED: i32 = 255;

/// Kills of each kind and handler.
pub(crate) fn deaths() -> u32 {
    std::env::var(DEATHS_VARIABLE).map_or(DEATHS, |count| count.parse().unwrap())
}

/// `deathtest` in the node; its document.
pub(crate) fn deathtest(node: &Node, handlers: &[&str], arguments: &str) -> Value {
    let handlers: String = handlers.iter().map(|handler| format!(" --handler {handler}")).collect();
    let line = format!("deathtest run --image localhost/busybox:1 --format json{handlers} {arguments}");
    let mut output = node.output(&line).unwrap();
    // The connection with the node was lost: seen once under emulation. A run has pods of its own.
    if output.status.code() == Some(SSH_FAILED) {
        print("the connection with the node was lost; deathtest is run again");
        output = node.output(&line).unwrap();
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // Stock loses kills, which is exit code 1.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{line}: {}\n{errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Prints a line for each handler and case, and answers the sums of each handler.
pub(crate) fn print_card(title: &str, document: &Value) {
    print(format_args!("{title}: {}", document["runtime"].as_str().unwrap()));
    for handler in document["handlers"].as_array().unwrap() {
        for case in handler["cases"].as_array().unwrap() {
            let counts = case["counts"].as_object().unwrap().iter();
            let counts: Vec<_> = counts.filter(|(_, count)| **count != 0).collect();
            let shown: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let (handler, case) = (handler["name"].as_str().unwrap(), case["name"].as_str().unwrap());
            print(format_args!("  {handler:<8} {case:<23} {}", shown.join(", ")));
        }
    }
}

/// The sum of a verdict over a handler's cases.
pub(crate) fn sum(document: &Value, handler: &str, verdict: &str) -> u64 {
    let handlers = document["handlers"].as_array().unwrap();
    let found = handlers.iter().find(|it| it["name"] == handler).unwrap();
    found["cases"].as_array().unwrap().iter().map(|case| case["counts"][verdict].as_u64().unwrap()).sum()
}

/// What is promised of each handler while the router runs.
pub(crate) fn check(document: &Value) {
    for handler in HANDLERS {
        for verdict in ["lost", "false", "wrong", "not-started", "not-proven"] {
            assert_eq!(sum(document, handler, verdict), 0, "{handler}: {verdict}\n{document:#}");
        }
    }
    assert_eq!(sum(document, "proxied", "first-wrong"), 0, "{document:#}");
}

/// The handlers `wrapped` and `proxied`, the units, and containerd with them.
pub(crate) fn configure(node: &Node) {
    for name in ["install.sh", "shim.toml", "containerd.toml"] {
        node.copy(&file(name), &format!("/tmp/{name}")).unwrap();
    }
    node.run("cd /tmp && sh install.sh").unwrap();
}

#[test]
fn no_kill_is_lost_in_any_mode() {
    let _timed = timed("no_kill_is_lost_in_any_mode");
    let count = deaths();
    let node = installed("deaths");
    configure(&node);
    kernel::kills_are_published_once_and_named(&node);
    let kills: String = KILLS.iter().map(|case| format!(" --case {case}")).collect();

    let whole = deathtest(&node, &HANDLERS, "");
    print_card("every case once", &whole);
    check(&whole);
    causes::check_deathtest(&node, &whole);
    let counted = format!("{kills} --count {count} --busy 2");
    let busy = deathtest(&node, &HANDLERS, &counted);
    print_card("with two busy loops", &busy);
    check(&busy);

    node.run("systemctl stop coroner.socket coroner-shim.socket coroner coroner-agent").unwrap();
    let stock = deathtest(&node, &["runc"], &counted);
    print_card("stock, with two busy loops", &stock);
    let of = |verdict: &str| sum(&stock, "runc", verdict);
    print(format_args!(
        "of {} kills stock loses {}; beside, wrapped and proxy lose none",
        of("n"),
        of("lost")
    ));
}
