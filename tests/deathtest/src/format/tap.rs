//! The score card in the Test Anything Protocol, version 14: a test point for each handler and
//! case.

use crate::card::{Card, Row};

use super::{lines, sentence};

/// The whole document.
pub(super) fn text(card: &Card) -> String {
    let rows: Vec<Row> = card.rows().collect();
    let mut text = vec!["TAP version 14".to_owned(), format!("1..{}", rows.len())];
    text.push(format!("# {}", escaped(&card.runtime)));
    for (at, row) in rows.iter().enumerate() {
        text.extend(point(card, at + 1, row));
    }
    if card.interrupted {
        text.push("Bail out! interrupted".to_owned());
    }
    lines(text)
}

fn point(card: &Card, number: usize, row: &Row) -> Vec<String> {
    let name = format!("{number} - {}/{}", escaped(row.handler), row.case);
    if let Some(reason) = row.skipped {
        return vec![format!("ok {name} # SKIP {}", escaped(reason))];
    }
    let ok = if row.counts.has_failure() { "not ok" } else { "ok" };
    let mut lines = vec![format!("{ok} {name}"), "  ---".to_owned()];
    lines.push(format!("  message: {}", quoted(&row.counts.sentence())));
    let mut listed = card.deaths_of(row.handler, row.case).filter(|death| death.is_listed()).peekable();
    if listed.peek().is_some() {
        lines.push("  containers:".to_owned());
        lines.extend(listed.map(|death| format!("    - {}", quoted(&sentence(death)))));
    }
    lines.push("  ...".to_owned());
    lines
}

/// Text on a line of TAP: `#` begins a directive.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('#', "\\#").replace(char::is_control, " ")
}

/// A scalar of YAML in double quotes; those of JSON are a subset.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::tests::sample;

    #[test]
    fn document_is_as_version_14_has_it() {
        let expect = r##"TAP version 14
1..6
# containerd v2.4.2
not ok 1 - runc/oom-pid-1
  ---
  message: "2 containers: 1 lost, 1 first-wrong"
  containers:
    - "0cba00000000 lost: first Error/137, final Error/137, expected OOMKilled/137; OOM kill of dd (pid 4711) in the kernel log"
    - "1cba00000000 first-wrong: first Error/137, final OOMKilled/137, expected OOMKilled/137; OOM kill of dd (pid 4711) in the kernel log"
  ...
not ok 2 - runc/exit-7
  ---
  message: "2 containers: 1 ok, 1 not-started"
  containers:
    - "5cba00000000 not-started: first -, final no <memory> & \"no\" start, expected Error/7; no OOM kill in the kernel log"
  ...
ok 3 - runc/oom-group # SKIP memory.oom.group needs cgroup v2
ok 4 - coroner/oom-pid-1
  ---
  message: "2 containers: 2 ok"
  ...
ok 5 - coroner/exit-7
  ---
  message: "1 container: 1 ok"
  ...
ok 6 - coroner/oom-group # SKIP memory.oom.group needs cgroup v2
"##;
        assert_eq!(text(&sample()), expect);
    }

    #[test]
    fn names_cannot_begin_a_directive() {
        assert_eq!(escaped("a # SKIP\nok \\"), "a \\# SKIP ok \\\\");
    }

    #[test]
    fn interrupted_run_bails_out() {
        let card = crate::card::Card { interrupted: true, ..sample() };
        assert!(text(&card).ends_with("Bail out! interrupted\n"));
    }
}
