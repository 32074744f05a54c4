//! `coroner policy check`: one component file, looked at without a router.

use std::path::Path;
use std::process::ExitCode;

use coroner::policy::{Checked, Compile, Host, Settings, check};

use crate::cli::{FAILED, WRONG};
use crate::serve::this_program;

pub(crate) fn run(file: &Path, config: Option<&Path>, json: bool) -> ExitCode {
    let compile = Compile { program: Some(this_program()), ..Compile::default() };
    let host = match Host::new(Settings { compile, ..Settings::default() }) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("coroner: {error}");
            return FAILED.into();
        }
    };
    // A policy's own file lies beside it, where none is named.
    let beside = file.with_extension("toml");
    let config = config.or_else(|| beside.is_file().then_some(beside.as_path()));
    let checked = check(&host, file, config);
    print(file, &checked, json);
    if checked.ok { ExitCode::SUCCESS } else { WRONG.into() }
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn print(file: &Path, checked: &Checked, json: bool) {
    if json {
        println!("{}", serde_json::to_string(checked).expect("a report holds nothing JSON cannot say"));
        return;
    }
    let line = |name: &str, value: &str| println!("{name:<14} {value}");
    let list = |name: &str, values: &[String]| {
        line(name, if values.is_empty() { "none".to_owned() } else { values.join(", ") }.as_str());
    };
    let (name, version) = (checked.policy.as_deref(), checked.version.as_deref());
    if let (Some(name), Some(version)) = (name, version) {
        line("policy", &format!("{name} {version}"));
    }
    if let (Some(digest), Some(size)) = (&checked.digest, checked.size) {
        line("digest", digest);
        line("size", &format!("{size} bytes"));
    }
    if let (Some(version), Some(ms)) = (checked.wit_version, checked.compile_ms) {
        line("contract", &format!("coroner:policy@{version}"));
        line("compiled in", &format!("{ms} ms"));
        list("imports", &checked.imports);
    }
    if checked.policy.is_some() {
        list("wants", &checked.wants);
        list("needs", &checked.needs);
        let schema = checked.config_schema.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        line("config schema", &schema);
    }
    if let Some(call) = &checked.call {
        let of = call.signals;
        line("a call", &format!("{} fuel, {} us (medians over {of} recorded signals)", call.fuel, call.us));
    }
    for mistake in &checked.mistakes {
        println!("{}: {mistake}", file.display());
    }
    if checked.ok {
        println!("{}: good", file.display());
    }
}
