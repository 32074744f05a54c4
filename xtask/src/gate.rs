//! The gate: every suite in order, up to the first that fails.

mod results;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::{fuzz, guest, next, packages, plugins, process, workspace};
use results::Results;

/// What a suite does.
enum Step {
    /// Installs the system packages.
    Packages,
    /// Rebuilds the bundled policies; the suites after it find them.
    Plugins,
    /// Gets and builds what guests are made of.
    Guest,
    /// Gets the newer containerd that a suite runs.
    Next,
    /// Builds and runs the fuzz targets, each of which counts as a test.
    Fuzz,
    /// A cargo command.
    Cargo(Vec<String>),
    /// A cargo command that checks without building: it has a target folder of its own, beside the release one.
    Lint(Vec<String>),
    /// A cargo command that runs tests. None run, or one ignored, is a failure: no suite skips.
    Tests(Vec<String>),
}

struct Suite {
    name: String,
    step: Step,
}

/// Every suite, in order: the cheap ones first, then one build for all that run, at last what checks without building.
///
/// Tests are picked from the whole workspace by target name, never by package: cargo unites features over
/// the packages it is given, and with other features the engine is built once more, for ten minutes.
fn suites() -> anyhow::Result<Vec<Suite>> {
    let fixed = |name: &str, step: Step| Suite { name: name.to_owned(), step };
    let words = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let tests = |what: &str| Step::Tests(words(&format!("test --release --workspace --locked {what}")));

    let mut suites = vec![
        fixed("packages", Step::Packages),
        fixed("format", Step::Cargo(words("fmt --all --check"))),
        fixed("build", Step::Cargo(words("build --release --workspace --bins --tests --locked"))),
        fixed("unit", tests("--lib --bins")),
        fixed("doc-tests", tests("--doc")),
        fixed("plugins", Step::Plugins),
        fixed("guest-parts", Step::Guest),
        fixed("trixie", Step::Next),
    ];
    let (integration, mut end_to_end) = test_targets()?;
    if !integration.is_empty() {
        let targets: Vec<String> = integration.iter().map(|name| format!("--test {name}")).collect();
        suites.push(fixed("integration", tests(&targets.join(" "))));
    }
    // This one first: it is quick, and says whether the policies that the others run are the right ones.
    end_to_end.sort_by_key(|name| name != "policies");
    for name in end_to_end {
        suites.push(fixed(&name, tests(&format!("--test {name} -- --nocapture --test-threads=1"))));
    }
    suites.push(fixed("fuzz", Step::Fuzz));
    suites
        .push(fixed("clippy", Step::Lint(words("clippy --workspace --all-targets --locked -- -D warnings"))));
    suites.push(fixed("docs", Step::Lint(words("doc --workspace --no-deps --locked"))));
    Ok(suites)
}

/// Test targets found in the tree, so that none is forgotten: those of the packages, and the end-to-end ones of `tests`.
fn test_targets() -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut integration, mut end_to_end) = (Vec::new(), Vec::new());
    for member in workspace::members()? {
        let targets = workspace::targets(&workspace::root().join(&member).join("tests"))?;
        let list = if member.as_os_str() == "tests" { &mut end_to_end } else { &mut integration };
        list.extend(targets);
    }
    integration.sort();
    integration.dedup();
    if let Some(name) = end_to_end.iter().find(|name| integration.contains(name)) {
        bail!("two test targets are named {name}: they would run together, and count twice");
    }
    Ok((integration, end_to_end))
}

/// Prints the suites' names and commands.
pub(crate) fn list(only: &[String]) -> anyhow::Result<()> {
    for suite in chosen(suites()?, only)? {
        let command = match &suite.step {
            Step::Packages => format!("apt-get install {}", packages::GATE.join(" ")),
            Step::Plugins => "cargo xtask plugins --check".to_owned(),
            Step::Guest => "cargo xtask guest".to_owned(),
            Step::Next => "cargo xtask next".to_owned(),
            Step::Fuzz => "cargo xtask fuzz".to_owned(),
            Step::Cargo(args) | Step::Lint(args) | Step::Tests(args) => format!("cargo {}", args.join(" ")),
        };
        println!("{:<14} {command}", suite.name);
    }
    Ok(())
}

/// Runs them, prints the minutes of each, and in the last line `N passed, M failed`; answers whether none failed.
pub(crate) fn run(only: &[String]) -> anyhow::Result<bool> {
    let suites = chosen(suites()?, only)?;
    let mut run = Run { rebuilt: None, results: Results::default() };
    let mut done: Vec<(&str, Duration, &str)> = Vec::new();
    let mut failure = None;
    for suite in &suites {
        println!("\n=== {} ({} of {})", suite.name, done.len() + 1, suites.len());
        let start = Instant::now();
        let outcome = run.step(&suite.step);
        done.push((&suite.name, start.elapsed(), if outcome.is_ok() { "ok" } else { "FAILED" }));
        if let Err(error) = outcome {
            failure = Some((&suite.name, error));
            break;
        }
    }

    println!();
    for (name, took, outcome) in &done {
        println!("{name:<14} {:>6.1} min  {outcome}", took.as_secs_f64() / 60.0);
    }
    let whole: Duration = done.iter().map(|(_, took, _)| *took).sum();
    println!("{:<14} {:>6.1} min", "together", whole.as_secs_f64() / 60.0);
    for suite in &suites[done.len()..] {
        println!("{:<14}      not run", suite.name);
    }

    let Results { passed, mut failed, .. } = run.results;
    if let Some((name, error)) = &failure {
        println!("\nsuite {name} failed: {error:#}\nagain: cargo xtask test --only {name}");
        // What fails without a test case, such as a build, is one failure too.
        failed = failed.max(1);
    }
    println!("{passed} passed, {failed} failed");
    Ok(failure.is_none())
}

/// The named ones and what they need, in order; all when none is named.
fn chosen(all: Vec<Suite>, only: &[String]) -> anyhow::Result<Vec<Suite>> {
    if let Some(name) = only.iter().find(|name| all.iter().all(|suite| suite.name != **name)) {
        let names: Vec<&str> = all.iter().map(|suite| suite.name.as_str()).collect();
        bail!("no suite {name}; there are: {}", names.join(", "));
    }
    let named = |name: &str| only.iter().any(|only| only == name);
    // The suite `policies` compares the committed plugins with those that the step `plugins` has rebuilt; guests are made of
    // parts; the newer containerd is Debian trixie's.
    let needed = |name: &str| match name {
        "plugins" => named("policies"),
        "guest-parts" => named("guest"),
        "trixie" => named("containerd-next"),
        _ => false,
    };
    let wanted = |name: &str| only.is_empty() || named(name) || needed(name);
    Ok(all.into_iter().filter(|suite| wanted(&suite.name)).collect())
}

struct Run {
    rebuilt: Option<PathBuf>,
    results: Results,
}

impl Run {
    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Packages => packages::ensure(packages::GATE),
            Step::Plugins => {
                self.rebuilt = Some(plugins::check()?);
                Ok(())
            }
            Step::Guest => guest::parts().map(drop),
            Step::Next => next::make(next::TRIXIE),
            Step::Fuzz => {
                self.results.passed += fuzz::run(fuzz::SECONDS)?;
                Ok(())
            }
            Step::Cargo(args) => process::run(workspace::cargo().args(args)),
            Step::Lint(args) => {
                let mut command = workspace::cargo();
                command
                    .env("CARGO_TARGET_DIR", workspace::target_dir("lint"))
                    .env("RUSTDOCFLAGS", "-Dwarnings");
                process::run(command.args(args))
            }
            Step::Tests(args) => {
                let mut command = workspace::cargo();
                if let Some(folder) = &self.rebuilt {
                    command.env("CORONER_REBUILT_PLUGINS", folder);
                }
                self.tests(command.args(args))
            }
        }
    }

    fn tests(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let mut results = Results::default();
        let outcome = process::run_lines(command, |line| results.read(line));
        self.results += results;
        // Which tests failed says more than that cargo did; without any, it was the build.
        if results.failed > 0 { results.check() } else { outcome.and_then(|()| results.check()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
        chosen(suites().unwrap(), &only).unwrap().into_iter().map(|suite| suite.name).collect()
    }

    #[test]
    fn every_end_to_end_test_in_the_tree_is_a_suite() {
        let all = names(&[]);
        for target in workspace::targets(&workspace::root().join("tests/tests")).unwrap() {
            assert!(all.contains(&target), "{target} is in no suite: {all:?}");
        }
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len(), "{all:?}");
    }

    #[test]
    fn suites_are_chosen_by_name_in_the_order_of_the_gate() {
        assert_eq!(names(&["docs", "format"]), ["format", "docs"]);
        let error = chosen(suites().unwrap(), &["unti".to_owned()]).err().unwrap().to_string();
        assert!(error.starts_with("no suite unti; there are: packages, format, build"), "{error}");
    }

    #[test]
    fn the_suite_that_compares_plugins_has_them_rebuilt_first() {
        let suite = |name: &str| Suite { name: name.to_owned(), step: Step::Packages };
        let all = vec![suite("packages"), suite("plugins"), suite("policies")];
        let chosen = chosen(all, &["policies".to_owned()]).unwrap();
        assert_eq!(
            chosen.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(),
            ["plugins", "policies"]
        );
    }

    #[test]
    fn the_suites_that_run_what_is_downloaded_have_it_got_first() {
        let suite = |name: &str| Suite { name: name.to_owned(), step: Step::Packages };
        for (part, name) in [("guest-parts", "guest"), ("trixie", "containerd-next")] {
            let all = ["packages", "guest-parts", "trixie", "guest", "containerd-next"].map(suite).into();
            let chosen = chosen(all, &[name.to_owned()]).unwrap();
            assert_eq!(chosen.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(), [part, name]);
        }
    }
}
