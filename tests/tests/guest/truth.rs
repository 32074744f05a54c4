//! What happened in the guests against what was reported of it: nothing is missing, nothing
//! invented, each kill before its exit.

use std::collections::HashMap;
use std::time::Duration;

use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::report::print;
use coroner_tests::router::Router;
use coroner_tests::wait::until;
use serde_json::Value;

/// For the last of a storm to be ruled.
const LAST: Duration = Duration::from_secs(120);

/// What a container did.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) id: String,
    pub(crate) kills: u64,
    pub(crate) status: u64,
}

/// All kinds of end, one after the other: the action of a program, its kills and its status.
pub(crate) const ENDS: [(&str, u64, u64); 5] = [
    ("self 64", 1, 137),
    ("child 64 1 0", 1, 1),
    ("exit 0", 0, 0),
    ("exit 143", 0, 143),
    ("children 2 64 10", 2, 0),
];

/// The signals of one kind that were ruled for a container: each by its first record, by its place
/// in the audit.
fn first_of<'a>(audit: &'a [Value], id: &str, kind: &str) -> Vec<(usize, &'a Value)> {
    let mut first: Vec<(usize, &Value)> = Vec::new();
    for (at, record) in audit.iter().enumerate() {
        let signal = &record["signal"];
        let fits = record["record"] == "ruled"
            && signal["target"]["container-id"] == id
            && !signal["event"][kind].is_null();
        if fits && first.iter().all(|(_, it)| it["id"] != signal["id"]) {
            first.push((at, signal));
        }
    }
    first
}

/// Waits until every exit was ruled, then holds the audit and containerd's events against what
/// happened.
pub(crate) async fn check(router: &Router, events: &mut Events, truths: &[Truth]) {
    until("every exit to be ruled", LAST, async || {
        let audit = router.audit()?;
        Ok(truths.iter().all(|it| !first_of(&audit, &it.id, "exited").is_empty()).then_some(()))
    })
    .await
    .unwrap();
    let audit = router.audit().unwrap();
    for Truth { id, kills, status } in truths {
        let killed = first_of(&audit, id, "oom-kill");
        let totals: Vec<u64> =
            killed.iter().map(|(_, it)| it["event"]["oom-kill"]["total"].as_u64().unwrap()).collect();
        assert!(totals.is_sorted_by(|before, after| before < after), "{id}: {totals:?}");
        assert_eq!(totals.last().copied().unwrap_or(0), *kills, "{id}: kills reported against what happened");
        let exits = first_of(&audit, id, "exited");
        let [(at, exit)] = exits.as_slice() else { panic!("{id}: exits reported: {exits:?}") };
        assert_eq!(exit["event"]["exited"]["status"], *status, "{id}: {exit}");
        assert!(killed.iter().all(|(kill, _)| kill < at), "{id}: a kill after the exit");

        events.wait_for(EXIT, id, 1, LAST).await.unwrap();
        let published = events.of(id);
        let ooms = published.iter().filter(|it| it.topic == OOM).count();
        assert_eq!(ooms > 0, *kills > 0, "{id}: {published:?}");
        let first = published.iter().position(|it| it.topic == EXIT).unwrap();
        assert!(ooms == 0 || published[..first].iter().any(|it| it.topic == OOM), "{id}: {published:?}");
        for event in published.iter().filter(|it| it.topic == EXIT) {
            assert_eq!(event.status.map(u64::from), Some(*status), "{id}: {event:?}");
        }
    }
    for truth in truths {
        let explained = explain(router, &truth.id);
        assert!(truth.allows(&explained), "{truth:?}: {explained}");
    }
    print(format_args!("{} verdicts of explain are what happened", truths.len()));
}

/// The verdict of `explain`.
fn explain(router: &Router, id: &str) -> String {
    let audit = router.path("audit.jsonl").display().to_string();
    let output = router.command(&["explain", id, "--file", &audit]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.lines().find_map(|line| line.strip_prefix("verdict "));
    verdict.unwrap_or_else(|| panic!("no verdict on {id}: {text}")).trim().to_owned()
}

impl Truth {
    /// Whether a verdict states what happened. The kernel's log may name no victim: ten in five
    /// seconds. A shim reports the status alone.
    fn allows(&self, verdict: &str) -> bool {
        let Self { kills, status, .. } = self;
        let is_end = |ends: [&str; 2]| ends.iter().any(|end| verdict.starts_with(end));
        // The exit was reported by a later router.
        let verdict = &verdict.replace(" while no router ran", "");
        match (kills, status) {
            (0, _) => {
                let ends = [format!("exited {status}"), format!("ended with status {status}")];
                ends.iter().any(|end| end == verdict)
            }
            (1, 137) => {
                let ended = is_end(["was ended by SIGKILL", "ended with status 137"]);
                ended && verdict.contains(" OOM kill in it")
                    || verdict.starts_with("OOM-killed: the kernel killed its first process")
            }
            (1.., _) => {
                // How long after it is known where both are on one clock.
                let after = verdict.strip_prefix(&format!("exited {status}"));
                let after = after.filter(|it| it.starts_with([',', ' ']));
                after.is_some_and(|it| {
                    it.contains(" after an OOM kill ") && !it.contains(" its first process (")
                })
            }
        }
    }
}

/// How many records repeat a signal. What is reported again is the same, but for when the router
/// received it.
pub(crate) fn repeats(audit: &[Value]) -> usize {
    let mut first: HashMap<&str, Value> = HashMap::new();
    let mut repeats = 0;
    for record in audit.iter().filter(|it| it["record"] == "ruled") {
        let mut content = record["signal"].clone();
        content["at"]["received-ms"] = Value::Null;
        match first.get(record["signal"]["id"].as_str().unwrap()) {
            Some(before) => {
                assert_eq!(*before, content, "a repeat is the same");
                repeats += 1;
            }
            None => drop(first.insert(record["signal"]["id"].as_str().unwrap(), content)),
        }
    }
    repeats
}
