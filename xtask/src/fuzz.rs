//! Fuzzes what reads a guest's bytes: builds the targets in `fuzz` with the usual compiler, and
//! runs them beside each other.
//!
//! The layout is cargo-fuzz's, so that `cargo fuzz run NAME` works too; neither it nor another
//! compiler is needed here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::{guest, process, workspace};

/// How long the gate runs each.
pub(crate) const SECONDS: u32 = 60;
/// What cargo-fuzz gives a build without a sanitizer: the code here is safe Rust, in which a panic
/// is what there is to find.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=yes",
    "-Ccodegen-units=1",
];
/// Megabytes a target may take: an answer is some ten of them at worst.
const MEMORY: u32 = 1024;
/// Seconds one input may take.
const INPUT: u32 = 20;

/// Builds and runs every target for so many seconds; answers how many there are.
pub(crate) fn run(seconds: u32) -> anyhow::Result<usize> {
    let folder = workspace::root().join("fuzz");
    let names: Vec<String> = workspace::targets(&folder.join("fuzz_targets"))?.into_iter().collect();
    if names.is_empty() {
        bail!("there is no target in fuzz/fuzz_targets");
    }
    let target = workspace::target_dir("fuzz");
    let mut build = workspace::cargo();
    build.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    build.args(["build", "--manifest-path", "fuzz/Cargo.toml", "--release", "--bins", "--locked"]);
    process::run(build.args(["--target", guest::TARGET]))?;

    let found = target.join("found");
    let mut logs = Vec::new();
    let mut commands = Vec::new();
    for name in &names {
        let corpus = copy(&folder.join("corpus").join(name), &found.join(name).join("corpus"))?;
        let log = found.join(name).join("log");
        let mut command = Command::new(target.join(guest::TARGET).join("release").join(name));
        command.args([
            format!("-max_total_time={seconds}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-timeout={INPUT}"),
            format!("-artifact_prefix={}/", found.join(name).display()),
        ]);
        command
            .arg(corpus)
            .stderr(fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
        logs.push(log);
        commands.push(command);
    }
    let mut failed = Vec::new();
    for ((name, log), ended) in names.iter().zip(&logs).zip(process::run_together(&mut commands)?) {
        let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        match (summary(&text), ended) {
            (Some(summary), Ok(())) => println!("{name}: {summary}"),
            (_, ended) => {
                let last: Vec<&str> = text.lines().rev().take(40).collect();
                last.iter().rev().for_each(|line| println!("{name}| {line}"));
                let input = crashing(&text).unwrap_or("no input was kept");
                let how =
                    ended.err().map_or_else(|| "its log has no result".to_owned(), |error| error.to_string());
                failed.push(format!("{name}: {how}; {input}"));
            }
        }
    }
    if failed.is_empty() { Ok(names.len()) } else { bail!("{}", failed.join("\n")) }
}

/// The seeds, in a folder that the run adds to.
fn copy(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for seed in workspace::entries(from)? {
        let name = seed.file_name().expect("an entry has a name");
        fs::copy(&seed, to.join(name)).with_context(|| format!("cannot copy {}", seed.display()))?;
    }
    Ok(to.to_owned())
}

/// Of `Done 1145008 runs in 9 second(s)` and `#1145008 DONE cov: 1071 ft: 3214 corp: 409/56Kb ...`.
fn summary(log: &str) -> Option<String> {
    let done = log.lines().find_map(|line| line.strip_prefix("Done "))?;
    let (runs, rest) = done.split_once(" runs in ")?;
    let (seconds, _) = rest.split_once(' ')?;
    if runs.parse::<u64>().ok()? == 0 {
        return None;
    }
    let (_, covered) = log.lines().rev().find_map(|line| line.split_once("cov: "))?;
    let covered = covered.split_whitespace().next()?;
    Some(format!("{runs} runs in {seconds} s, {covered} edges covered"))
}

/// `artifact_prefix='...'; Test unit written to PATH`.
fn crashing(log: &str) -> Option<&str> {
    log.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_result_is_read_from_its_log() {
        let log = "#2\tINITED cov: 9 ft: 9 corp: 1/1b\n#7\tDONE   cov: 10 ft: 30 corp: 4/5b\nDone 7 runs in 61 second(s)\n";
        assert_eq!(summary(log).as_deref(), Some("7 runs in 61 s, 10 edges covered"));
        assert_eq!(summary("#2\tINITED cov: 9\n"), None, "it did not come to its end");
        assert_eq!(summary("cov: 9\nDone 0 runs in 61 second(s)\n"), None, "it ran nothing");
    }

    #[test]
    fn crashing_input_is_named() {
        let log =
            "SUMMARY: libFuzzer: deadly signal\nartifact_prefix='/t/'; Test unit written to /t/crash-1\n";
        assert_eq!(crashing(log), Some("/t/crash-1"));
        assert_eq!(crashing("Done"), None);
    }
}
