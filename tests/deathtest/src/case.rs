//! The cases: deaths as data, read from a file in TOML.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::verdict::Reading;

/// The cases that are built in.
const BUILT_IN: &str = include_str!("cases.toml");
/// The reasons of a container's end in CRI.
const REASONS: [&str; 3] = ["OOMKilled", "Error", "Completed"];
/// runc's own start needs 6 MiB, in the container's cgroup.
const LEAST_MEMORY: i64 = 8 << 20;
/// Longer than any kubelet's grace period that a test needs.
const LONGEST_GRACE: u32 = 600;

/// One death, and what CRI has to report of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// Unique, of a-z, 0-9 and hyphens.
    pub(crate) name: String,
    /// One line for a person.
    pub(crate) about: String,
    /// The container's command.
    pub(crate) command: Vec<String>,
    /// The memory limit in bytes.
    pub(crate) memory: i64,
    /// Whether a kill hits all processes (`memory.oom.group`, cgroup v2 only).
    pub(crate) group: bool,
    /// What is done to the container once it has printed `ready`.
    pub(crate) fault: Fault,
    /// The final reading of CRI.
    pub(crate) expected: Reading,
    /// What the kernel log has to show.
    pub(crate) proof: Proof,
}

/// What is done to a container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    #[default]
    Nothing,
    /// SIGKILL from the host to its first process.
    Kill,
    /// StopContainer with a grace period in seconds.
    Stop(u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => out.write_str("-"),
            Self::Kill => out.write_str("kill"),
            Self::Stop(grace) => write!(out, "stop, {grace} s"),
        }
    }
}

/// What the kernel log has to show of a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proof {
    /// An OOM kill in the container's cgroup.
    OomKill,
    /// Not one OOM kill there.
    None,
}

impl fmt::Display for Proof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::OomKill => "oom-kill",
            Self::None => "none",
        })
    }
}

/// A file of cases that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaseError {
    #[error("not a file of cases: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("{}", .0.join("\n"))]
    Mistakes(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    case: Vec<RawCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    #[serde(default)]
    about: String,
    command: Vec<String>,
    memory: String,
    #[serde(default)]
    group: bool,
    #[serde(default)]
    fault: Fault,
    reason: String,
    status: i32,
    proof: Proof,
}

/// The cases of a file, or the built-in ones.
pub(crate) fn load(file: Option<&Path>) -> Result<Vec<Case>> {
    let Some(file) = file else {
        return parse(BUILT_IN).context("the built-in cases");
    };
    let name = file.display();
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read {name}: name a file of cases with --cases"))?;
    parse(&text).with_context(|| format!("{name}; `deathtest list` shows the built-in cases"))
}

/// The named ones in the order of the file; all when none is named.
pub(crate) fn chosen(cases: Vec<Case>, names: &[String]) -> Result<Vec<Case>> {
    if let Some(name) = names.iter().find(|name| cases.iter().all(|case| case.name != **name)) {
        let all: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        bail!("no case {name}; there are: {}", all.join(", "));
    }
    Ok(cases.into_iter().filter(|case| names.is_empty() || names.contains(&case.name)).collect())
}

fn parse(text: &str) -> Result<Vec<Case>, CaseError> {
    let raw: RawFile = toml::from_str(text)?;
    let mut mistakes = Vec::new();
    let mut names = BTreeSet::new();
    let mut cases = Vec::new();
    for raw in raw.case {
        if !names.insert(raw.name.clone()) {
            mistakes.push(format!("case {}: the name is used twice", raw.name));
        }
        cases.push(check(raw, &mut mistakes));
    }
    if cases.is_empty() {
        mistakes.push("the file has no [[case]]".to_owned());
    }
    if mistakes.is_empty() { Ok(cases) } else { Err(CaseError::Mistakes(mistakes)) }
}

/// Notes every mistake with its key.
fn check(raw: RawCase, mistakes: &mut Vec<String>) -> Case {
    let RawCase { name, about, command, memory, group, fault, reason, status, proof } = raw;
    let mut wrong = |key: &str, what: String| mistakes.push(format!("case {name}: {key}: {what}"));
    if !is_name(&name) {
        wrong("name", "1 to 40 characters of a-z, 0-9 and -".to_owned());
    }
    if command.first().is_none_or(String::is_empty) {
        wrong("command", "an array with the program first".to_owned());
    }
    let bytes = bytes(&memory).unwrap_or_default();
    if bytes < LEAST_MEMORY {
        wrong("memory", format!("a size of at least 8Mi, such as 16Mi; not {memory:?}"));
    }
    if let Fault::Stop(grace) = fault
        && grace > LONGEST_GRACE
    {
        wrong("fault", format!("a grace period of at most {LONGEST_GRACE} s; not {grace}"));
    }
    if !REASONS.contains(&reason.as_str()) {
        wrong("reason", format!("{}; not {reason:?}", REASONS.join(", ")));
    }
    if !(0..=255).contains(&status) {
        wrong("status", format!("0 to 255; not {status}"));
    }
    if proof == Proof::None && reason == "OOMKilled" {
        wrong("proof", "OOMKilled needs the proof oom-kill".to_owned());
    }
    Case { expected: Reading { reason, status }, name, about, command, memory: bytes, group, fault, proof }
}

fn is_name(name: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&name.len()) && name.chars().all(is_valid) && !name.starts_with('-')
}

/// `16Mi` as Kubernetes writes it, or plain bytes.
fn bytes(text: &str) -> Option<i64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: i64 = text[..text.len() - unit.len()].parse().ok()?;
    let factor = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[[case]]
name = "a"
command = ["/bin/true"]
memory = "16Mi"
reason = "Completed"
status = 0
proof = "none"
"#;

    #[test]
    fn built_in_cases_are_good() {
        let cases = load(None).unwrap();
        assert!(cases.len() >= 10, "{cases:#?}");
        for case in &cases {
            assert!(!case.about.is_empty() && case.about.len() <= 60, "{case:?}");
            assert_eq!(case.expected.is_oom(), case.proof == Proof::OomKill, "{}", case.name);
            let waits = case.command.iter().any(|it| it.contains("echo ready"));
            assert_eq!(waits, case.fault != Fault::Nothing, "{}: a fault needs `ready`", case.name);
        }
        assert_eq!(cases.iter().filter(|case| case.group).count(), 1);
    }

    #[test]
    fn page_lists_the_built_in_cases() {
        let page = include_str!("../../../docs/operating/deathtest.md");
        for case in load(None).unwrap() {
            let Reading { reason, status } = case.expected;
            let proof = if case.proof == Proof::OomKill { "kill" } else { "none" };
            let row = format!("| `{}` | {} | `{reason}`, {status} | {proof} |", case.name, case.about);
            assert!(page.lines().any(|line| line == row), "{row}");
        }
        let shown = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        assert!(BUILT_IN.contains(shown), "{shown}");
    }

    #[test]
    fn defaults_and_faults_are_read() {
        let case = &parse(GOOD).unwrap()[0];
        assert_eq!((case.memory, case.group, case.fault), (16 << 20, false, Fault::Nothing));
        let with = |line: &str| parse(&format!("{GOOD}{line}\n")).unwrap()[0].fault;
        assert_eq!(with("fault = \"kill\""), Fault::Kill);
        assert_eq!(with("fault = { stop = 3 }"), Fault::Stop(3));
    }

    #[test]
    fn every_mistake_is_reported_with_its_key() {
        let bad = GOOD
            .replace("\"a\"", "\"A b\"")
            .replace("[\"/bin/true\"]", "[]")
            .replace("16Mi", "16MB")
            .replace("Completed", "Done")
            .replace("status = 0", "status = 256\nfault = { stop = 601 }");
        let error = parse(&format!("{bad}{GOOD}{GOOD}")).unwrap_err().to_string();
        for key in ["name", "command", "memory", "reason", "status", "fault"] {
            assert!(error.contains(&format!("case A b: {key}: ")), "{key}: {error}");
        }
        assert!(error.ends_with("case a: the name is used twice"), "{error}");
        assert!(parse("").unwrap_err().to_string().contains("missing field `case`"));
        let other = parse(&format!("{GOOD}colour = 1\n")).unwrap_err().to_string();
        assert!(other.contains("unknown field `colour`"), "{other}");
        let unproven = parse(&GOOD.replace("Completed", "OOMKilled")).unwrap_err().to_string();
        assert_eq!(unproven, "case a: proof: OOMKilled needs the proof oom-kill");
    }

    #[test]
    fn cases_are_chosen_by_name() {
        let all = load(None).unwrap();
        let names = ["exit-7".to_owned(), "exit-0".to_owned()];
        let two: Vec<String> = chosen(all.clone(), &names).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(two, ["exit-0", "exit-7"]);
        assert_eq!(chosen(all.clone(), &[]).unwrap(), all);
        let error = chosen(all, &["exit-9".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("no case exit-9; there are: oom-"), "{error}");
    }

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, expect) in
            [("16Mi", Some(16 << 20)), ("1Gi", Some(1 << 30)), ("9000", Some(9000)), ("8Ki", Some(8192))]
        {
            assert_eq!(bytes(text), expect, "{text}");
        }
        for bad in ["", "Mi", "16M", "-1", "1.5Gi", "9223372036854775807Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
