//! The findings and the shims, as text or JSON.

use std::process::ExitCode;

use serde::Serialize;

use super::shims::Shim;
use super::{Finding, Severity};
use crate::render::{Colour, Screen, Text, paint};

#[derive(Serialize)]
struct DoctorDocument<'a> {
    findings: &'a [Finding],
    shims: &'a [Shim],
}

pub(super) fn print(findings: &[Finding], shims: &[Shim], json: bool, code: ExitCode) -> ExitCode {
    let mut screen = Screen::new();
    if json {
        let document = DoctorDocument { findings, shims };
        screen.verbatim(&serde_json::to_string(&document).expect("its keys are strings"));
    } else {
        findings.iter().for_each(|finding| show(finding, &mut screen));
    }
    screen.finish(code)
}

/// One line, and the change below it.
pub(super) fn show(finding: &Finding, screen: &mut Screen) {
    let mark = match finding.level {
        Severity::Ok => paint(Colour::Green, "ok   "),
        Severity::Warn => paint(Colour::Yellow, "warn "),
        Severity::Wrong => paint(Colour::Red, "wrong"),
    };
    screen.line(mark.then(format!("  {}: {}", finding.subject, finding.message)));
    for line in finding.change.iter().flat_map(|change| change.lines()) {
        screen.line(Text::from(format!("           {line}")));
    }
}
