//! `coroner check`: would the router start with all of it?

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use coroner::audit::Refused;
use coroner::config::{Config, ConfigError, Mistake, PolicyMode};
use coroner::policy::{Host, Keeper, Settings};
use serde::Serialize;

use crate::cli::{FAILED, WRONG};
use crate::serve::read;
use crate::service;

#[derive(Serialize)]
struct Report {
    ok: bool,
    mistakes: Vec<Mistake>,
    chain: Vec<Link>,
    /// For a person: no mistake, and good to know.
    #[serde(skip)]
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Link {
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
            Err(error) => {
                eprintln!("coroner: the wasm engine does not start: {error}");
                return FAILED.into();
            }
        },
        Err(ConfigError::Mistakes { mistakes, .. }) => {
            Report { ok: false, mistakes, chain: Vec::new(), notes: Vec::new() }
        }
        Err(error @ ConfigError::Read { .. }) => {
            let mistake = Mistake { key: String::new(), message: error.to_string() };
            Report { ok: false, mistakes: vec![mistake], chain: Vec::new(), notes: Vec::new() }
        }
    };
    print(path, &report, json);
    if report.ok { ExitCode::SUCCESS } else { WRONG.into() }
}

fn chain(config: &Config) -> Result<Report, String> {
    // What is checked changes nothing: compiled for this once, and kept nowhere.
    let settings = Settings { cache: None, ..config.policies.clone() };
    let host = Host::new(settings).map_err(|error| error.to_string())?;
    let keeper = Keeper::start(Arc::new(host));
    let lineup = keeper.lineups().now();
    let refused = keeper.refused();
    let taken = lineup.policies.iter().map(|policy| Link {
        policy: policy.name.clone(),
        version: Some(policy.version().to_owned()),
        digest: Some(policy.digest.clone()),
        mode: Some(policy.mode),
        error: None,
    });
    let left = refused.iter().map(|refused| Link {
        policy: refused.subject.clone(),
        version: None,
        digest: None,
        mode: None,
        error: Some(refused.reason.clone()),
    });
    let mut chain: Vec<Link> = taken.chain(left).collect();
    chain.sort_by(|one, other| one.policy.cmp(&other.policy));
    let mistake =
        |refused: &Refused| Mistake { key: "policies.directory".to_owned(), message: refused.reason.clone() };
    Ok(Report {
        ok: refused.is_empty(),
        mistakes: refused.iter().map(mistake).collect(),
        chain,
        notes: service::note(config).into_iter().collect(),
    })
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn print(path: &Path, report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::to_string(report).expect("a report holds nothing JSON cannot say"));
        return;
    }
    for mistake in &report.mistakes {
        match mistake.key.as_str() {
            "" => println!("{}: {}", path.display(), mistake.message),
            key => println!("{}: {key}: {}", path.display(), mistake.message),
        }
    }
    for link in report.chain.iter().filter(|link| link.error.is_none()) {
        let (version, digest) =
            (link.version.as_deref().unwrap_or("?"), link.digest.as_deref().unwrap_or("?"));
        let mode = link.mode.map_or("?", PolicyMode::name);
        println!("{:<24} {version:<10} {mode:<8} {digest}", link.policy);
    }
    for note in &report.notes {
        println!("{}: {note}", path.display());
    }
    if report.ok {
        println!("{}: good", path.display());
    }
}
