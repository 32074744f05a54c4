//! `coroner doctor`: are containerd, the wrapped shims and the router set up for each other, and what is to be changed?
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

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Doctor, FAILED};

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Ok,
    Warn,
    Wrong,
}

/// What was judged of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    subject: String,
    message: String,
    /// The TOML or the command that puts it right.
    change: Option<String>,
}

impl Finding {
    fn new(level: Level, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level, subject: subject.into(), message: message.into(), change: None }
    }

    fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, message)
    }

    fn warn(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Warn, subject, message)
    }

    fn wrong(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Wrong, subject, message)
    }

    fn change(self, change: impl Into<String>) -> Self {
        Self { change: Some(change.into()), ..self }
    }
}

pub(crate) fn run(ask: &Doctor) -> ExitCode {
    let facts = match gather::all(ask) {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("coroner: {error}");
            return FAILED.into();
        }
    };
    let findings = if ask.uninstall { uninstall::judge(&facts) } else { judge::all(&facts) };
    report::print(&findings, &facts.shims, ask.json);
    let wrong = findings.iter().any(|finding| finding.level == Level::Wrong);
    if wrong { FAILED.into() } else { ExitCode::SUCCESS }
}
