//! Findings and shims, for a person or a machine.

use std::io::IsTerminal;

use serde::Serialize;

use super::shims::Shim;
use super::{Finding, Level};

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

#[derive(Serialize)]
struct Document<'a> {
    findings: &'a [Finding],
    shims: &'a [Shim],
}

#[expect(clippy::print_stdout, reason = "the findings are what the command is for")]
pub(super) fn print(findings: &[Finding], shims: &[Shim], json: bool) {
    if json {
        let document = Document { findings, shims };
        println!("{}", serde_json::to_string(&document).expect("findings hold nothing JSON cannot say"));
        return;
    }
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for line in findings.iter().flat_map(|finding| lines(finding, colours)) {
        println!("{line}");
    }
}

/// One line, and what is to be changed below it.
fn lines(finding: &Finding, colours: bool) -> Vec<String> {
    let (mark, colour) = match finding.level {
        Level::Ok => ("ok   ", GREEN),
        Level::Warn => ("warn ", YELLOW),
        Level::Wrong => ("wrong", RED),
    };
    let mark = if colours { format!("\u{1b}[{colour}m{mark}\u{1b}[0m") } else { mark.to_owned() };
    let head = format!("{mark}  {}: {}", finding.subject, finding.message);
    let change = finding.change.iter().flat_map(|change| change.lines());
    std::iter::once(head).chain(change.map(|line| format!("           {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doctors_finding_is_a_line_and_its_change_is_indented() {
        let finding = Finding::wrong("runtime a", "is not right").change("x = 1\ny = 2");
        let plain = ["wrong  runtime a: is not right", "           x = 1", "           y = 2"];
        assert_eq!(lines(&finding, false), plain);
        assert!(lines(&finding, true)[0].starts_with("\u{1b}[31mwrong\u{1b}[0m  runtime a"));
    }
}
