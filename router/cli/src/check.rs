//! `coroner check`: whether the router would start with a configuration and its policies.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use coroner::node::config::{Config, ConfigError, Mistake, PolicyMode};
use coroner_core::audit::Refused;
use coroner_policy::{Host, PolicyManager, Settings};
use serde::Serialize;

use crate::args::{FAILED, WRONG};
use crate::render::{Screen, fail};
use crate::serve::read;
use crate::service;

/// Columns of a policy's name.
const NAME: usize = 24;

#[derive(Serialize)]
struct CheckReport {
    ok: bool,
    mistakes: Vec<Mistake>,
    chain: Vec<PolicyReport>,
    /// Hints that are not mistakes, in text only.
    #[serde(skip)]
    notes: Vec<String>,
}

#[derive(Serialize)]
struct PolicyReport {
    policy: String,
    version: Option<String>,
    digest: Option<String>,
    mode: Option<PolicyMode>,
    error: Option<String>,
}

pub(crate) fn run(path: &Path, json: bool) -> ExitCode {
    let report = match read(path) {
        Ok(config) => match chain(&config) {
            Ok(chain) => chain,
            Err(error) => return fail(FAILED, format!("the wasm engine does not start: {error}")),
        },
        Err(ConfigError::Mistakes { mistakes, .. }) => {
            CheckReport { ok: false, mistakes, chain: Vec::new(), notes: Vec::new() }
        }
        Err(error @ ConfigError::Read { .. }) => {
            let mistake = Mistake { key: String::new(), message: error.to_string() };
            CheckReport { ok: false, mistakes: vec![mistake], chain: Vec::new(), notes: Vec::new() }
        }
    };
    let mut screen = Screen::new();
    if json {
        screen.verbatim(&serde_json::to_string(&report).expect("its keys are strings"));
    } else {
        show(path, &report, &mut screen);
    }
    screen.finish(if report.ok { ExitCode::SUCCESS } else { WRONG.into() })
}

fn chain(config: &Config) -> Result<CheckReport, String> {
    // A check changes nothing: policies are compiled for it alone, and not cached.
    let settings = Settings { cache: None, ..config.policies.clone() };
    let host = Host::new(settings).map_err(|error| error.to_string())?;
    let manager = PolicyManager::start(Arc::new(host));
    let snapshot = manager.active_chain().now();
    let refused = manager.refused();
    let loaded = snapshot.policies.iter().map(|policy| PolicyReport {
        policy: policy.name.clone(),
        version: Some(policy.version().to_owned()),
        digest: Some(policy.digest.clone()),
        mode: Some(policy.mode),
        error: None,
    });
    let left_out = refused.iter().map(|refused| PolicyReport {
        policy: refused.subject.clone(),
        version: None,
        digest: None,
        mode: None,
        error: Some(refused.reason.clone()),
    });
    let mut chain: Vec<PolicyReport> = loaded.chain(left_out).collect();
    chain.sort_by(|one, other| one.policy.cmp(&other.policy));
    let mistake =
        |refused: &Refused| Mistake { key: "policies.directory".to_owned(), message: refused.reason.clone() };
    let mut mistakes = config.missing_here();
    mistakes.extend(refused.iter().map(mistake));
    Ok(CheckReport {
        ok: mistakes.is_empty(),
        mistakes,
        chain,
        notes: service::note(config).into_iter().collect(),
    })
}

fn show(path: &Path, report: &CheckReport, screen: &mut Screen) {
    let path = path.display();
    for mistake in &report.mistakes {
        match mistake.key.as_str() {
            "" => screen.line(format!("{path}: {}", mistake.message)),
            key => screen.line(format!("{path}: {key}: {}", mistake.message)),
        }
    }
    for policy in report.chain.iter().filter(|policy| policy.error.is_none()) {
        let version = policy.version.as_deref().unwrap_or("?");
        let digest = policy.digest.as_deref().unwrap_or("?");
        let mode = policy.mode.map_or("?", PolicyMode::name);
        screen.line(format!("{:<NAME$} {version:<10} {mode:<8} {digest}", policy.policy));
    }
    for note in &report.notes {
        screen.line(format!("{path}: {note}"));
    }
    if report.ok {
        screen.line(format!("{path}: good"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_mistakes_chain_and_notes() {
        let mistake = |key: &str| Mistake { key: key.to_owned(), message: "is wrong".to_owned() };
        let policy = PolicyReport {
            policy: "00-kubernetes".to_owned(),
            version: Some("0.1.0".to_owned()),
            digest: Some("sha256:0123".to_owned()),
            mode: Some(PolicyMode::Enforce),
            error: None,
        };
        let (mistakes, notes) = (vec![mistake(""), mistake("sink[0].path")], Vec::new());
        let wrong = CheckReport { ok: false, mistakes, chain: Vec::new(), notes };
        let good = CheckReport {
            ok: true,
            mistakes: Vec::new(),
            chain: vec![policy],
            notes: vec!["a note".to_owned()],
        };
        let mut screen = Screen::plain();
        show(Path::new("coroner.toml"), &wrong, &mut screen);
        show(Path::new("coroner.toml"), &good, &mut screen);
        insta::assert_snapshot!(screen.text());
    }
}
