//! The score card as JUnit's XML: a suite for each handler, a test for each of its cases.

use crate::card::{Card, Row};

use super::{lines, sentence};

/// The whole document.
pub(super) fn text(card: &Card) -> String {
    let mut text = vec![r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned()];
    text.push(format!(r#"<testsuites name="deathtest on {}">"#, escaped(&card.runtime)));
    card.handlers.iter().for_each(|handler| text.extend(suite(card, handler)));
    text.push("</testsuites>".to_owned());
    lines(text)
}

fn suite(card: &Card, handler: &str) -> Vec<String> {
    let rows: Vec<Row> = card.rows().filter(|row| row.handler == handler).collect();
    let failures = rows.iter().filter(|row| row.counts.has_failure()).count();
    let skipped = rows.iter().filter(|row| row.skipped.is_some()).count();
    // A run that was interrupted is one error.
    let errors = usize::from(card.interrupted);
    let mut lines = vec![format!(
        r#"  <testsuite name="{}" tests="{}" failures="{failures}" errors="{errors}" skipped="{skipped}">"#,
        escaped(handler),
        rows.len(),
    )];
    rows.iter().for_each(|row| lines.extend(case(card, row)));
    if card.interrupted {
        lines.push("    <system-err>interrupted: the results are not complete</system-err>".to_owned());
    }
    lines.push("  </testsuite>".to_owned());
    lines
}

fn case(card: &Card, row: &Row) -> Vec<String> {
    let open = format!(r#"    <testcase classname="{}" name="{}""#, escaped(row.handler), escaped(row.case));
    if let Some(reason) = row.skipped {
        return vec![
            format!("{open}>"),
            format!(r#"      <skipped message="{}"/>"#, escaped(reason)),
            "    </testcase>".to_owned(),
        ];
    }
    let listed = card.deaths_of(row.handler, row.case).filter(|death| death.is_listed());
    let listed: Vec<String> = listed.map(|death| escaped(&sentence(death))).collect();
    if listed.is_empty() {
        return vec![format!("{open}/>")];
    }
    let (begin, end) = if row.counts.has_failure() {
        let message = escaped(&row.counts.sentence());
        (format!(r#"      <failure message="{message}">"#), "      </failure>")
    } else {
        ("      <system-out>".to_owned(), "      </system-out>")
    };
    let around = |line: &str| vec![line.to_owned()];
    [vec![format!("{open}>"), begin], listed, around(end), around("    </testcase>")].concat()
}

/// Text of an attribute or an element. XML 1.0 has no control characters, not even escaped ones.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(char::REPLACEMENT_CHARACTER);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::tests::sample;

    #[test]
    fn document_has_a_suite_for_each_handler() {
        let text = text(&sample());
        let expect = [
            r#"<testsuites name="deathtest on containerd v2.4.2">"#,
            r#"  <testsuite name="runc" tests="3" failures="2" errors="0" skipped="1">"#,
            r#"    <testcase classname="runc" name="oom-pid-1">"#,
            r#"      <failure message="2 containers: 1 lost, 1 first-wrong">"#,
            "0cba00000000 lost: first Error/137, final Error/137, expected OOMKilled/137; OOM kill of dd \
             (pid 4711) in the kernel log",
            r#"      <skipped message="memory.oom.group needs cgroup v2"/>"#,
            r#"  <testsuite name="coroner" tests="3" failures="0" errors="0" skipped="1">"#,
            r#"    <testcase classname="coroner" name="exit-7"/>"#,
        ];
        for line in expect {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(text.contains("final no &lt;memory&gt; &amp; &quot;no&quot; start"), "{text}");
    }

    #[test]
    fn every_element_is_closed() {
        let text = text(&Card { interrupted: true, ..sample() });
        for element in ["testsuites", "testsuite", "failure", "testcase", "system-err"] {
            let is_open = |line: &&str| {
                let line = line.trim();
                (line.starts_with(&format!("<{element}>")) || line.starts_with(&format!("<{element} ")))
                    && !line.ends_with("/>")
            };
            let opened = text.lines().filter(is_open).count();
            assert_eq!(opened, text.matches(&format!("</{element}>")).count(), "{element}\n{text}");
            assert!(opened > 0, "{element}\n{text}");
        }
    }

    #[test]
    fn text_of_any_kind_is_escaped() {
        assert_eq!(
            escaped("<a b=\"c\">&\n\u{1b}\u{ffff}é"),
            "&lt;a b=&quot;c&quot;&gt;&amp; \u{fffd}\u{fffd}é"
        );
    }
}
