//! The gate: every suite in order. A suite that others need stops the run when it fails.

mod results;

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{book, fuzz, guest, next, node, package, packages, plugins, process, workspace};
use results::Results;

/// What a suite does.
enum Step {
    /// Installs the system packages.
    Packages,
    /// Rebuilds the bundled policies; the suites after it find them.
    Plugins,
    /// Builds the book of `docs/`.
    Book,
    /// Gets and builds what guests are made of.
    Guest,
    /// Builds the Debian package.
    Package,
    /// Builds the node with cgroup v2 and systemd, without Kubernetes, and saves it.
    Node,
    /// Gets or builds the newer containerd that a suite runs.
    Next(&'static str),
    /// Builds and runs the fuzz targets, each of which counts as a test.
    Fuzz,
    /// A cargo command.
    Cargo(Vec<String>),
    /// A cargo command that checks without building: it has a target folder of its own, beside the
    /// release one. It runs beside the suites from [`WAITING`] on, which compute little.
    Lint(Vec<String>),
    /// A cargo command that runs tests. None run, or one ignored, is a failure: no suite skips.
    Tests(Vec<String>),
}

impl Step {
    /// Whether the suites after this one use what it makes: its failure would only be repeated.
    fn is_needed_by_others(&self, name: &str) -> bool {
        match self {
            Self::Packages | Self::Plugins | Self::Guest | Self::Next(_) => true,
            // One suite uses it, and fails without it.
            Self::Package | Self::Node | Self::Book | Self::Fuzz | Self::Lint(_) | Self::Tests(_) => false,
            Self::Cargo(_) => name == BUILD,
        }
    }
}

struct Suite {
    name: String,
    step: Step,
}

/// The suite that builds what the others run.
const BUILD: &str = "build";
/// Outcomes of a lint.
const ONE: usize = 1;
/// The first of the suites that wait for the programs that they start.
const WAITING: &str = "chaos";

/// Every suite, in order: the cheap ones first, then one build for all that run, at last what
/// checks without building.
///
/// Tests are picked from the whole workspace by target name, never by package: cargo unites
/// features over the packages it is given, and with other features the engine is built once more,
/// for ten minutes.
fn suites() -> anyhow::Result<Vec<Suite>> {
    let fixed = |name: &str, step: Step| Suite { name: name.to_owned(), step };
    let words = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let tests = |what: &str| Step::Tests(words(&format!("test --release --workspace --locked {what}")));

    let mut suites = vec![
        fixed("packages", Step::Packages),
        fixed("format", Step::Cargo(words("fmt --all --check"))),
        fixed("book", Step::Book),
        fixed(BUILD, Step::Cargo(workspace::BUILD.map(str::to_owned).to_vec())),
        fixed("unit", tests("--lib --bins")),
        fixed("doc-tests", tests("--doc")),
        fixed("plugins", Step::Plugins),
        fixed("guest-parts", Step::Guest),
        fixed("deb", Step::Package),
        fixed("trixie", Step::Next(next::TRIXIE)),
        fixed("newest", Step::Next(next::NEWEST)),
        fixed("node-parts", Step::Node),
    ];
    let (integration, mut end_to_end) = test_targets()?;
    if !integration.is_empty() {
        let targets: Vec<String> = integration.iter().map(|name| format!("--test {name}")).collect();
        suites.push(fixed("integration", tests(&targets.join(" "))));
    }
    // This one first: it is quick, and checks that the policies that the others run are the right
    // ones.
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

/// Test targets found in the tree, so that none is forgotten: those of the packages, and the
/// end-to-end ones of the packages below `tests`.
fn test_targets() -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut integration, mut end_to_end) = (Vec::new(), Vec::new());
    for member in workspace::members()? {
        let targets = workspace::targets(&workspace::root().join(&member).join("tests"))?;
        let list = if member.starts_with("tests") { &mut end_to_end } else { &mut integration };
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
            Step::Book => "cargo xtask book".to_owned(),
            Step::Guest => "cargo xtask guest".to_owned(),
            Step::Package => "cargo xtask package".to_owned(),
            Step::Node => "cargo xtask node build --without-kubernetes".to_owned(),
            Step::Next(name) => format!("cargo xtask next {name}"),
            Step::Fuzz => "cargo xtask fuzz".to_owned(),
            Step::Cargo(args) | Step::Lint(args) | Step::Tests(args) => format!("cargo {}", args.join(" ")),
        };
        println!("{:<14} {command}", suite.name);
    }
    Ok(())
}

/// Runs them, prints the minutes of each, and in the last line `N passed, M failed`; answers
/// whether none failed.
pub(crate) fn run(only: &[String]) -> anyhow::Result<bool> {
    let suites = chosen(suites()?, only)?;
    let mut run = Run::default();
    let mut done: Vec<(&str, Duration, &str)> = Vec::new();
    let mut failures = Vec::new();
    for suite in &suites {
        println!("\n=== {} ({} of {})", suite.name, done.len() + 1, suites.len());
        if suite.name == WAITING {
            run.lint_beside(&suites);
        }
        let start = Instant::now();
        let outcome = run.step(suite);
        done.push((&suite.name, start.elapsed(), if outcome.is_ok() { "ok" } else { "FAILED" }));
        if let Err(error) = outcome {
            println!("suite {} failed: {error:#}", suite.name);
            failures.push((&suite.name, error));
            if suite.step.is_needed_by_others(&suite.name) {
                break;
            }
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
    for (name, error) in &failures {
        println!("\nsuite {name} failed: {error:#}\nagain: cargo xtask test --only {name}");
    }
    // What fails without a test case, such as a build, is one failure too.
    failed = failed.max(failures.len());
    println!("{passed} passed, {failed} failed");
    Ok(failures.is_empty())
}

/// The named ones and what they need, in order; all when none is named.
fn chosen(all: Vec<Suite>, only: &[String]) -> anyhow::Result<Vec<Suite>> {
    if let Some(name) = only.iter().find(|name| all.iter().all(|suite| suite.name != **name)) {
        let names: Vec<&str> = all.iter().map(|suite| suite.name.as_str()).collect();
        bail!("no suite {name}; there are: {}", names.join(", "));
    }
    let named = |name: &str| only.iter().any(|only| only == name);
    // The suite `policies` compares the committed plugins with those that the step `plugins` has
    // rebuilt; guests are made of parts; the package is installed in Debian trixie; the newer
    // containerds are Debian trixie's and upstream's newest.
    let needed = |name: &str| match name {
        "plugins" => named("policies"),
        "guest-parts" => named("guest"),
        "deb" => named("package") || named("node"),
        "node-parts" => named("node"),
        "trixie" => named("containerd-next") || named("package"),
        "newest" => named("containerd-newest") || named("deathtest") || named("node"),
        _ => false,
    };
    // A suite runs the workspace's programs: cargo builds the suite alone, and they would be stale.
    let tests = all.iter().any(|suite| named(&suite.name) && matches!(suite.step, Step::Tests(_)));
    let wanted = |suite: &Suite| {
        only.is_empty() || named(&suite.name) || needed(&suite.name) || (tests && suite.name == BUILD)
    };
    Ok(all.into_iter().filter(wanted).collect())
}

#[derive(Default)]
struct Run {
    rebuilt: Option<PathBuf>,
    results: Results,
    /// The lints that run beside the suites, in order.
    lints: Vec<(String, Receiver<anyhow::Result<()>>)>,
}

impl Run {
    /// Starts the suites that check without building, one after the other. Each suite waits for its
    /// own, and prints what that printed.
    fn lint_beside(&mut self, suites: &[Suite]) {
        let mut queue = Vec::new();
        for suite in suites {
            let Step::Lint(args) = &suite.step else { continue };
            let (ended, outcome) = mpsc::sync_channel(ONE);
            queue.push((lint(args), lint_log(&suite.name), ended));
            self.lints.push((suite.name.clone(), outcome));
        }
        std::thread::spawn(move || {
            for (command, log, ended) in queue {
                // An error: the gate has ended.
                ended.send(process::run_beside(&command, &log)).ok();
            }
        });
    }

    /// Runs a lint, or waits for it where it runs.
    fn lint(&mut self, name: &str, args: &[String]) -> anyhow::Result<()> {
        let Some(at) = self.lints.iter().position(|(lint, _)| lint == name) else {
            return process::run(&mut lint(args));
        };
        println!("$ {}", process::shown(&lint(args)));
        let (_, ended) = self.lints.remove(at);
        let outcome = ended.recv().with_context(|| format!("the thread of {name} panicked"))?;
        let log = lint_log(name);
        let printed = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        print!("{printed}");
        outcome
    }

    fn step(&mut self, suite: &Suite) -> anyhow::Result<()> {
        match &suite.step {
            Step::Packages => packages::ensure(packages::GATE),
            Step::Plugins => {
                self.rebuilt = Some(plugins::check()?);
                Ok(())
            }
            Step::Book => book::build(),
            Step::Guest => guest::parts().map(drop),
            Step::Package => package::build().map(drop),
            Step::Node => node::build(None, true),
            Step::Next(name) => next::make(name),
            Step::Fuzz => {
                self.results.passed += fuzz::run(fuzz::SECONDS)?;
                Ok(())
            }
            Step::Cargo(args) => process::run(workspace::cargo().args(args)),
            Step::Lint(args) => self.lint(&suite.name, args),
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
        // The names of failed tests are more useful than that cargo failed; without any, it was the
        // build.
        if results.failed > 0 { results.check() } else { outcome.and_then(|()| results.check()) }
    }
}

fn lint(args: &[String]) -> Command {
    let mut command = workspace::cargo();
    command.env("CARGO_TARGET_DIR", workspace::target_dir("lint")).env("RUSTDOCFLAGS", "-Dwarnings");
    command.args(args);
    command
}

/// What a lint that runs beside the suites prints.
fn lint_log(name: &str) -> PathBuf {
    workspace::target_dir("lint").join(format!("{name}.log"))
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
        for folder in ["tests/tests", "tests/load/tests"] {
            let targets = workspace::targets(&workspace::root().join(folder)).unwrap();
            assert!(!targets.is_empty(), "{folder}");
            for target in targets {
                assert!(all.contains(&target), "{target} is in no suite: {all:?}");
            }
        }
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len(), "{all:?}");
    }

    #[test]
    fn only_suites_that_others_need_stop_the_run() {
        let suites = suites().unwrap();
        let needed = suites.iter().filter(|suite| suite.step.is_needed_by_others(&suite.name));
        assert_eq!(
            needed.map(|suite| suite.name.as_str()).collect::<Vec<_>>(),
            ["packages", BUILD, "plugins", "guest-parts", "trixie", "newest"]
        );
    }

    #[test]
    fn suites_are_chosen_by_name_in_the_order_of_the_gate() {
        assert_eq!(names(&["docs", "format"]), ["format", "docs"]);
        let error = chosen(suites().unwrap(), &["unti".to_owned()]).err().unwrap().to_string();
        assert!(error.starts_with("no suite unti; there are: packages, format, book, build"), "{error}");
    }

    #[test]
    fn suite_of_tests_has_the_programs_built_first() {
        assert_eq!(names(&["chaos", "format"]), ["format", BUILD, "chaos"]);
        assert_eq!(names(&["format"]), ["format"]);
        assert_eq!(names(&["deathtest"]), [BUILD, "newest", "deathtest"]);
    }

    #[test]
    fn lints_run_beside_suites_and_fail_by_themselves() {
        let lint = |name: &str, args: &str| Suite {
            name: name.to_owned(),
            step: Step::Lint(args.split(' ').map(str::to_owned).collect()),
        };
        let suites = [lint("good", "--version"), lint("bad", "no-such-command")];
        let mut run = Run::default();
        run.lint_beside(&suites);
        assert_eq!(run.lints.len(), 2);
        run.step(&suites[0]).unwrap();
        assert!(run.step(&suites[1]).unwrap_err().to_string().contains("cargo ended with exit status: 101"));
        assert!(run.lints.is_empty());
        for suite in &suites {
            std::fs::remove_file(lint_log(&suite.name)).unwrap();
        }
    }

    #[test]
    fn suite_that_compares_plugins_has_them_rebuilt_first() {
        let suite = |name: &str| Suite { name: name.to_owned(), step: Step::Packages };
        let all = vec![suite("packages"), suite("plugins"), suite("policies")];
        let chosen = chosen(all, &["policies".to_owned()]).unwrap();
        assert_eq!(
            chosen.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(),
            ["plugins", "policies"]
        );
    }

    #[test]
    fn suites_that_run_downloads_have_them_fetched_first() {
        let suite = |name: &str| Suite { name: name.to_owned(), step: Step::Packages };
        let needs =
            [("guest-parts", "guest"), ("trixie", "containerd-next"), ("newest", "containerd-newest")];
        for (part, name) in needs {
            let all = needs.map(|(part, _)| part).into_iter().chain(needs.map(|(_, name)| name));
            let all = all.map(suite).collect();
            let chosen = chosen(all, &[name.to_owned()]).unwrap();
            assert_eq!(chosen.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(), [part, name]);
        }
    }
}
