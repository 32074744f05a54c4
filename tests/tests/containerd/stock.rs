//! What containerd shows without Coroner: proves the harness, and pins what the other cases compare
//! with.

use coroner_tests::containerd::Containerd;
use coroner_tests::report::{print, timed};
use rustix::process::{Signal, kill_process};

use crate::beside::{END, alone};

/// Name, memory limit in MB, the program's arguments, whether the host kills it, what CRI shows.
const TABLE: [(&str, i64, &str, bool, &str); 6] = [
    ("pid-1-over-its-limit", 32, "self 64", false, "OOMKilled/137"),
    ("child-killed-pid-1-exits-1", 32, "child 64 1 0", false, "OOMKilled/1"),
    ("child-killed-pid-1-exits-0-later", 32, "child 64 0 1000", false, "OOMKilled/0"),
    ("exit-1", 32, "exit 1", false, "Error/1"),
    ("exit-137", 32, "exit 137", false, "Error/137"),
    ("killed-from-the-host", 32, "pause", true, "Error/137"),
];

/// Runs of a row until its kill is not missed: a busy machine misses one in ten.
const ATTEMPTS: usize = 8;

#[tokio::test]
async fn stock_truth_table() {
    let _turn = alone().await;
    let _timed = timed("stock_truth_table");
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "stock").await.unwrap();
    for (name, limit, arguments, kill, expected) in TABLE {
        // A stock shim sets up its OOM watch after the start, and misses a kill now and then: the
        // reason for this project. What it shows when it does not miss is the table; anything but
        // an OOM it shows every time.
        let attempts = if expected.starts_with("OOMKilled") { ATTEMPTS } else { 1 };
        let mut shown = Vec::new();
        while shown.len() < attempts && !shown.iter().any(|last| last == expected) {
            let name = format!("{name}-{}", shown.len());
            let container = cri.run(&pod, &name, limit, arguments).await.unwrap();
            if kill {
                kill_process(cri.pid(&container).await.unwrap(), Signal::KILL).unwrap();
            }
            let (first, last) = cri.readings(&container, END).await.unwrap();
            print(format_args!("{name}: first {first}, final {last}"));
            shown.push(last.to_string());
        }
        assert!(shown.iter().any(|last| last == expected), "{name}: {expected} is not among {shown:?}");
    }
}
