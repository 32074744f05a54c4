//! `coroner check`: would the router start with all of it?

use std::path::Path;
use std::process::ExitCode;

use coroner::config::{Config, ConfigError, Mistake};
use coroner::policy::{Host, Limits, load};
use serde::Serialize;

use crate::cli::{FAILED, WRONG};

#[derive(Serialize)]
struct Report {
    ok: bool,
    mistakes: Vec<Mistake>,
    chain: Vec<Link>,
}

#[derive(Serialize)]
struct Link {
    policy: String,
    version: Option<String>,
    digest: Option<String>,
    error: Option<String>,
}

pub(crate) fn run(path: &Path, json: bool) -> ExitCode {
    let report = match Config::read(path) {
        Ok(config) => match chain(&config) {
            Ok(chain) => chain,
            Err(error) => {
                eprintln!("coroner: the wasm engine does not start: {error}");
                return FAILED.into();
            }
        },
        Err(ConfigError::Mistakes { mistakes, .. }) => Report { ok: false, mistakes, chain: Vec::new() },
        Err(error @ ConfigError::Read { .. }) => {
            let mistake = Mistake { key: String::new(), message: error.to_string() };
            Report { ok: false, mistakes: vec![mistake], chain: Vec::new() }
        }
    };
    print(path, &report, json);
    if report.ok { ExitCode::SUCCESS } else { WRONG.into() }
}

fn chain(config: &Config) -> Result<Report, String> {
    let limits = Limits { fuel: config.policy_fuel, memory: config.policy_memory };
    let host = Host::new(limits).map_err(|error| error.to_string())?;
    let (policies, refused) = load(&host, config.policy_directory.as_deref());
    let taken = policies.iter().map(|policy| Link {
        policy: policy.name.clone(),
        version: Some(policy.version().to_owned()),
        digest: Some(policy.digest.clone()),
        error: None,
    });
    let left = refused.iter().map(|error| Link {
        policy: error.subject(),
        version: None,
        digest: None,
        error: Some(error.to_string()),
    });
    let mut chain: Vec<Link> = taken.chain(left).collect();
    chain.sort_by(|one, other| one.policy.cmp(&other.policy));
    let mistakes = refused
        .iter()
        .map(|error| Mistake { key: "policies.directory".to_owned(), message: error.to_string() })
        .collect();
    Ok(Report { ok: refused.is_empty(), mistakes, chain })
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
        println!("{:<24} {version:<10} {digest}", link.policy);
    }
    if report.ok {
        println!("{}: good", path.display());
    }
}
