//! `coroner doctor`: whether containerd, the wrapped shims and the router fit each other, and what
//! to change.
//!
//! ```text
//! gather (files, sockets, /proc) -> Facts -> judge, uninstall (pure) -> Finding -> report
//! ```

mod containerd;
mod facts;
mod gather;
mod hello;
mod judge;
mod report;
mod shims;
mod uninstall;
mod wrapper;
mod write;

use std::process::ExitCode;

use serde::Serialize;

use self::facts::Facts;
use crate::args::{Doctor, FAILED};
use crate::render::fail;

/// The state of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Severity {
    Ok,
    Warn,
    Wrong,
}

/// The result for one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Severity,
    subject: String,
    message: String,
    /// The TOML or the command that corrects it.
    change: Option<String>,
}

impl Finding {
    fn new(level: Severity, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level, subject: subject.into(), message: message.into(), change: None }
    }

    fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Ok, subject, message)
    }

    fn warn(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warn, subject, message)
    }

    fn wrong(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Wrong, subject, message)
    }

    fn change(self, change: impl Into<String>) -> Self {
        Self { change: Some(change.into()), ..self }
    }
}

pub(crate) fn run(options: &Doctor) -> ExitCode {
    let (facts, written) = match gather::all(options).and_then(|facts| write(facts, options)) {
        Ok(gathered) => gathered,
        Err(error) => return fail(FAILED, error),
    };
    let mut findings = if options.uninstall { uninstall::judge(&facts) } else { judge::all(&facts) };
    findings.extend(written);
    let wrong = findings.iter().any(|finding| finding.level == Severity::Wrong);
    let code = if wrong { FAILED.into() } else { ExitCode::SUCCESS };
    report::print(&findings, &facts.shims, options.json, code)
}

/// With `--write`: writes or removes the drop-in, and gathers again.
fn write(facts: Facts, options: &Doctor) -> Result<(Facts, Option<Finding>), String> {
    if !options.write {
        return Ok((facts, None));
    }
    let written = match options.uninstall {
        false => Some(write::add(&facts, &options.containerd_config)),
        true => write::remove(&facts),
    };
    let facts = gather::all(options)?;
    let written = written.map(|it| if options.uninstall { it } else { write::checked(it, &facts) });
    Ok((facts, written))
}
