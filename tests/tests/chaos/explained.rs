//! What `coroner explain` prints of containers that died while everything broke; one of them is
//! shown in docs/operating/operations.md.

use coroner_tests::report::print;

use crate::world::{Life, World};

const PAGE: &str = include_str!("../../../docs/operating/operations.md");
/// How the example there begins.
const CALL: &str = "$ coroner explain bare-";
/// Its kind of death: a child is killed, and the program ends with 1.
const ACTION: &str = "child 64 1 0";

pub(crate) async fn all(world: &World, lives: &[Life]) {
    let shown = shape(example());
    let router = world.router.lock().await;
    let config = router.path("coroner.toml");
    let (mut explained, mut alike, mut holes, mut last) = (0, 0, 0, String::new());
    for life in lives.iter().filter(|life| life.action == ACTION && life.container.is_none()) {
        let output = router.command(&["explain", &life.id, "--config", config.to_str().unwrap()]).unwrap();
        assert!(output.status.success(), "{}: {output:?}", life.id);
        let text = String::from_utf8(output.stdout).unwrap();
        explained += 1;
        if text.lines().all(|line| !line.starts_with("verdict    exited 1,")) {
            holes += 1;
            continue;
        }
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing:\n{text}"));
        assert!(place("OOM kill, counter") < place("exited with status 1"), "{text}");
        assert!(place("containerd took /tasks/oom") < place("containerd took /tasks/exit"), "{text}");
        alike += usize::from(shape(&text) == shown);
        last = text;
    }
    print(format_args!(
        "{explained} containers explained, {alike} as docs/operating/operations.md shows it, {holes} with a hole"
    ));
    // Lines of some milliseconds are lost with a router that is killed.
    assert!(holes <= world.deaths.lock().unwrap().len(), "{last}");
    assert!(alike > 0, "none is as docs/operating/operations.md shows it, such as\n{last}");
}

/// The example on the page, without its first line, which is the command.
fn example() -> &'static str {
    let (_, after) = PAGE.split_once(CALL).expect("an example of a container of this suite");
    let (_, after) = after.split_once('\n').unwrap();
    after.split_once("```").unwrap().0
}

/// Lines of a kill's evidence above the verdict.
const OF_EVIDENCE: [&str; 6] = ["limit ", "limits ", "victim ", "processes ", "shares ", "not known "];
/// The signal with the evidence; the rulings on it are indented below.
const EVIDENCE: &str = "the evidence of its OOM kill";
/// A policy that is there for a part of the time.
const SECOND_POLICY: &str = "20-again";

/// Its words, whatever the numbers, names and times, and without the lines that depend on time:
/// those on restarts, on the second policy, and on evidence, which a busy agent may not have.
fn shape(text: &str) -> Vec<String> {
    let word = |word: &str| match word {
        "ms" | "s" => "TIME".to_owned(),
        _ if word.contains(|it: char| it.is_ascii_digit()) => "#".to_owned(),
        _ => word.to_owned(),
    };
    let restarts = |line: &str| line.contains("once more") || line.contains("the router began again");
    let evidence = |line: &str| OF_EVIDENCE.iter().any(|name| line.starts_with(name));
    let mut is_below_evidence = false;
    text.lines()
        .filter(|line| {
            is_below_evidence = line.contains(EVIDENCE) || is_below_evidence && line.starts_with(' ');
            !is_below_evidence && !evidence(line) && !restarts(line) && !line.contains(SECOND_POLICY)
        })
        .map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "))
        .collect()
}
