//! Each runtime of containerd's file: whether containerd starts the wrapper for it, and the wrapper
//! its shim.

use super::super::Finding;
use super::super::containerd::{Configuration, Runtime};
use super::super::facts::{Facts, Program};
use super::super::wrapper::{called, file_of};
use super::{MERGES_DEEPLY, TWO, change, wrapped};

pub(super) fn all(facts: &Facts, configuration: &Configuration) -> Vec<Finding> {
    let is_two = facts.containerd.version().map_or(configuration.version >= 3, |it| it >= TWO);
    let is_read = |runtime: &Runtime| match runtime.new {
        true => is_two,
        false => !is_two || configuration.version < 3,
    };
    let mut findings: Vec<Finding> = wrapped(facts)
        .filter(|(runtime, _)| is_read(runtime))
        .map(|(runtime, program)| judge(facts, runtime, program))
        .collect();
    let default = &configuration.default;
    if wrapped(facts).next().is_none() {
        findings.push(unused(facts, configuration));
    } else if !wrapped(facts).any(|(runtime, _)| runtime.name == *default) {
        let message =
            "pods without a RuntimeClass have it, and it is not wrapped: only those that name another are";
        findings.push(Finding::ok(subject(default), message));
    }
    findings.extend(systemd(facts, configuration));
    findings
}

fn subject(name: &str) -> String {
    format!("runtime {name}")
}

fn judge(facts: &Facts, runtime: &Runtime, program: &Program) -> Finding {
    let subject = subject(&runtime.name);
    let reads_path = change::reads_path(facts.containerd.version());
    let by_path = runtime.path.is_some();
    if by_path && reads_path == Some(false) {
        let message = "containerd ignores `runtime_path` before 1.7.1: it starts the stock shim";
        return Finding::wrong(subject, message).change(change::runtime(
            facts,
            &runtime.name,
            program.shim(),
        ));
    }
    let Some(path) = &program.path else {
        let file = runtime.path.clone().or_else(|| file_of(&runtime.kind));
        let file = file.unwrap_or_else(|| runtime.kind.clone());
        let place = if by_path { "at `runtime_path`" } else { "in containerd's PATH" };
        if !by_path && !facts.path_is_seen {
            let message = format!("containerd's PATH is not seen, and {file} is not in ours");
            return Finding::warn(subject, message);
        }
        let message = format!("there is no program {file} {place}: no pod of it starts");
        return Finding::wrong(subject, message).change(change::install(program.shim()));
    };
    if runtime.kind.is_empty() {
        return Finding::wrong(subject, "it has no `runtime_type`").change(change::runtime(
            facts,
            &runtime.name,
            program.shim(),
        ));
    }
    let Some(inner) = &program.inner else {
        let file = program.name.inner();
        let message = format!("the wrapper finds no {file} beside it or in PATH: no pod of it starts");
        return Finding::wrong(subject, message).change("inner = \"/usr/bin/".to_owned() + &file + "\"");
    };
    // The type decides how containerd encodes `options`, and runc's shim reads its own alone.
    let own_type = file_of(&runtime.kind).is_some_and(|file| called(file.as_ref()).is_some());
    if own_type && program.shim().is_none() && !runtime.options.is_empty() {
        let options = runtime.options.join(", ");
        let message =
            format!("runc's shim cannot read options below `{}`: leave out {options}", runtime.kind);
        let make = if reads_path == Some(false) { Finding::wrong } else { Finding::warn };
        return make(subject, message).change(change::runtime(facts, &runtime.name, program.shim()));
    }
    let message = format!("containerd starts {}, and that {}", path.display(), inner.display());
    Finding::ok(subject, message)
}

/// The table that puts the default runtime behind the wrapper.
pub(in crate::doctor) fn default_runtime(facts: &Facts, configuration: &Configuration) -> String {
    let default = &configuration.default;
    let stock = configuration.runtimes.iter().find(|it| it.name == *default).and_then(|it| stock(&it.kind));
    change::runtime(facts, default, stock.as_deref())
}

/// Whether that table can be a drop-in: before 2.1 containerd may replace a plugin's whole section
/// by an imported one. A runtime with a program of its own, or of another shim, has more to change.
pub(in crate::doctor) fn reads_drop_in(facts: &Facts, configuration: &Configuration) -> bool {
    let default = configuration.runtimes.iter().find(|it| it.name == configuration.default && it.new);
    configuration.version >= 3
        && facts.containerd.version().is_some_and(|it| it >= MERGES_DEEPLY)
        && default.is_some_and(|it| it.kind == "io.containerd.runc.v2" && it.path.is_none())
}

fn unused(facts: &Facts, configuration: &Configuration) -> Finding {
    let subject = "runtimes";
    let or_write = if reads_drop_in(facts, configuration) { "\n# or: coroner doctor --write" } else { "" };
    let waits = facts.router.as_ref().is_ok_and(|router| !router.sources.is_empty());
    if waits {
        Finding::warn(
            subject,
            "the router waits for wrapped shims, and no runtime of containerd uses the wrapper",
        )
        .change(default_runtime(facts, configuration) + or_write)
    } else {
        Finding::ok(
            subject,
            "none is wrapped, and the router has no source of type \"shim\": shims stay stock",
        )
    }
}

/// The name of a stock shim that is not runc's: `kata` of `io.containerd.kata.v2`.
fn stock(kind: &str) -> Option<String> {
    let name = kind.strip_prefix("io.containerd.")?.strip_suffix(".v2")?;
    (name != "runc").then(|| name.to_owned())
}

/// Without options runc does not use systemd for cgroups, and the kubelet's paths would not fit.
fn systemd(facts: &Facts, configuration: &Configuration) -> Option<Finding> {
    let own = |runtime: &Runtime, program: &Program| {
        runtime.path.is_none()
            && program.shim().is_none()
            && runtime.options.is_empty()
            && file_of(&runtime.kind).is_some_and(|file| called(file.as_ref()).is_some())
    };
    let (bare, _) = wrapped(facts).find(|(runtime, program)| own(runtime, program))?;
    let other = configuration.runtimes.iter().find(|it| it.systemd_cgroup)?;
    let message = format!(
        "`{}` has SystemdCgroup = true and this has no options: its pods' cgroups are not systemd's. Where the kubelet's \
         driver is systemd, call the wrapper containerd-shim-runc-v2 in a folder that is first in containerd's PATH, \
         and keep io.containerd.runc.v2 with its options",
        other.name
    );
    let change = "install -D -m 0755 containerd-shim-coroner-v2 /opt/containerd/bin/containerd-shim-runc-v2";
    Some(Finding::warn(subject(&bare.name), message).change(change))
}
