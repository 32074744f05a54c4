//! `coroner policy check`: checks one component file without a router.

use std::path::Path;
use std::process::ExitCode;

use coroner_policy::{Checked, CompileSettings, Host, Settings, check};

use crate::args::{FAILED, WRONG};
use crate::render::{Screen, fail, on_failure};
use crate::serve::this_program;

/// Columns of a field's name.
const NAME: usize = 14;

pub(crate) fn run(file: &Path, config: Option<&Path>, json: bool) -> ExitCode {
    let compile = CompileSettings { program: Some(this_program()), ..CompileSettings::default() };
    let host = match Host::new(Settings { compile, ..Settings::default() }) {
        Ok(host) => host,
        Err(error) => return fail(FAILED, error.to_string()),
    };
    // Unless another is named, a policy's own file is beside it.
    let beside = file.with_extension("toml");
    let config = config.or_else(|| beside.is_file().then_some(beside.as_path()));
    let checked = check(&host, file, config);
    let mut screen = Screen::new();
    if json {
        screen.verbatim(&serde_json::to_string(&checked).expect("its keys are strings"));
    } else {
        show(file, &checked, &mut screen);
    }
    screen.finish(if checked.ok { ExitCode::SUCCESS } else { WRONG.into() })
}

fn show(file: &Path, checked: &Checked, screen: &mut Screen) {
    let joined = |values: &[String]| if values.is_empty() { "none".to_owned() } else { values.join(", ") };
    if let (Some(name), Some(version)) = (&checked.policy, &checked.version) {
        screen.field(NAME, "policy", format!("{name} {version}"));
    }
    if let (Some(digest), Some(size)) = (&checked.digest, checked.size) {
        screen.field(NAME, "digest", digest.as_str());
        screen.field(NAME, "size", format!("{size} bytes"));
    }
    if let (Some(version), Some(ms)) = (&checked.wit_version, checked.compile_ms) {
        screen.field(NAME, "contract", format!("coroner:policy@{version}"));
        screen.field(NAME, "compiled in", format!("{ms} ms"));
        screen.field(NAME, "imports", joined(&checked.imports));
    }
    if checked.policy.is_some() {
        screen.field(NAME, "wants", joined(&checked.wants));
        screen.field(NAME, "needs", joined(&checked.needs));
        let schema = checked.config_schema.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        screen.field(NAME, "config schema", schema);
        screen.field(NAME, "on failure", on_failure(checked.on_failure.unwrap_or_default()));
    }
    if let Some(call) = &checked.call {
        let of = call.signals;
        let cost = format!("{} fuel, {} us (medians over {of} recorded signals)", call.fuel, call.us);
        screen.field(NAME, "a call", cost);
    }
    for mistake in &checked.mistakes {
        screen.line(format!("{}: {mistake}", file.display()));
    }
    if checked.ok {
        screen.line(format!("{}: good", file.display()));
    }
}

#[cfg(test)]
mod tests {
    use coroner_policy::CallCost;

    use super::*;

    #[test]
    fn report_names_the_policy_or_its_mistakes() {
        let checked = Checked {
            ok: true,
            policy: Some("mine".to_owned()),
            version: Some("0.1.0".to_owned()),
            digest: Some("sha256:0123".to_owned()),
            wit_version: Some("0.1.0"),
            imports: vec!["coroner:policy/types@0.1.0".to_owned()],
            wants: vec!["exited".to_owned()],
            size: Some(4711),
            compile_ms: Some(12),
            call: Some(CallCost { signals: 2, fuel: 900, us: 7 }),
            ..Checked::default()
        };
        let mut screen = Screen::plain();
        show(Path::new("50-mine.wasm"), &checked, &mut screen);
        let mistakes = vec!["it is not a WebAssembly component".to_owned()];
        show(Path::new("60-text.wasm"), &Checked { mistakes, ..Checked::default() }, &mut screen);
        insta::assert_snapshot!(screen.text());
    }
}
