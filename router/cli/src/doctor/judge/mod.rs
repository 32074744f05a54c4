//! What is right, and what to change: pure, so that a test can try every machine.

mod change;
mod router;
mod runtime;
mod shims;
#[cfg(test)]
pub(super) mod tests;

pub(super) use runtime::{default_runtime, reads_drop_in};
pub(super) use shims::name;

use super::containerd::{Configuration, NEW, OLD, Runtime};
use super::facts::{Cgroup, Facts, Program, Version};
use super::{Finding, Severity};

/// `runtime_path` is read from here on.
const READS_PATH: Version = Version(1, 7, 1);
/// Files of version 3, and not those of version 1 any more.
const TWO: Version = Version(2, 0, 0);
/// Tables of imported files are merged with the main file's.
const MERGES_DEEPLY: Version = Version(2, 1, 0);
/// CRI reads the task's own counter when an exit has status 137.
const READS_COUNTER: Version = Version(2, 3, 0);

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![user(facts), cgroup(facts.cgroup)];
    findings.extend(daemon(facts));
    match &facts.configuration {
        Ok(configuration) => {
            findings.extend(version_of_file(configuration, facts.containerd.version()));
            findings.extend(unread(facts));
            findings.extend(runtime::all(facts, configuration));
        }
        Err(error) => findings.push(Finding::warn(
            "containerd's configuration",
            format!("it cannot be read, so no runtime is known: {error}"),
        )),
    }
    findings.extend(router::all(facts));
    findings.extend(shims::all(facts));
    findings
}

/// The runtimes that are to be wrapped, each with what containerd starts for it.
fn wrapped(facts: &Facts) -> impl Iterator<Item = (&Runtime, &Program)> {
    let runtimes = facts.configuration.iter().flat_map(|it| &it.runtimes);
    runtimes.zip(&facts.programs).filter(|(_, program)| program.wraps)
}

fn user(facts: &Facts) -> Finding {
    match facts.root {
        true => Finding::ok("user", "runs as root"),
        false => Finding::warn(
            "user",
            "does not run as root: sockets may refuse it, and where shims publish is not seen",
        )
        .change("sudo coroner doctor"),
    }
}

fn cgroup(cgroup: Cgroup) -> Finding {
    let subject = "cgroup";
    match cgroup {
        Cgroup::V1 => Finding::ok(subject, "version 1 counts memory"),
        Cgroup::V2 => Finding::ok(subject, "version 2"),
        Cgroup::None => {
            Finding::warn(subject, "no memory controller at /sys/fs/cgroup: kills are not counted")
        }
    }
}

fn daemon(facts: &Facts) -> Vec<Finding> {
    let daemon = &facts.containerd;
    let address = daemon.address.display();
    let mut findings = vec![match &daemon.version {
        Ok(version) => Finding::ok("containerd", format!("version {version} answers at {address}")),
        Err(error) => {
            // For another user it may well be there.
            let level = if facts.root { Severity::Wrong } else { Severity::Warn };
            Finding::new(level, "containerd", format!("its version cannot be read at {address}: {error}"))
        }
    }];
    let ttrpc = daemon.ttrpc.path.display();
    findings.push(match &daemon.ttrpc.file {
        Ok(_) => Finding::ok("containerd's events", format!("are taken at {ttrpc}")),
        Err(error) => {
            Finding::wrong("containerd's events", format!("no socket takes them at {ttrpc}: {error}"))
        }
    });
    let overrides = daemon.version().is_some_and(|it| it >= READS_COUNTER);
    if overrides && wrapped(facts).next().is_some() {
        let message = "from 2.3 on, CRI reads a task's own counter when its status is 137, and may show OOMKilled \
                       although a policy ruled that there was none";
        findings.push(Finding::warn("containerd's own reasons", message));
    }
    findings
}

/// A file that was changed after containerd had read it.
fn unread(facts: &Facts) -> Option<Finding> {
    let path = facts.unread()?.display();
    let message = format!("{path} was changed after containerd started, which has not read it");
    Some(Finding::warn("containerd's configuration", message).change("systemctl restart containerd"))
}

/// Whether containerd reads the file in its version, and each table where it is.
fn version_of_file(file: &Configuration, daemon: Option<Version>) -> Vec<Finding> {
    let subject = "containerd's configuration";
    let is_two = daemon.map(|it| it >= TWO);
    let under = |new: bool| file.runtimes.iter().any(|runtime| runtime.new == new);
    let section = |plugin: &str| format!("[plugins.'{plugin}'.containerd.runtimes.NAME]");
    let of = format!("it is of version {}", file.version);
    let finding = match (file.version, is_two) {
        (..=1, Some(true)) => Finding::wrong(subject, "it is of version 1, which containerd 2 does not read")
            .change("version = 3"),
        (..=1, _) => {
            let message = "it is of version 1 (`version` is missing, or 1), and its runtimes are not checked";
            Finding::warn(subject, message).change("version = 2")
        }
        (_, Some(false)) if under(true) => {
            let message =
                format!("containerd 1 has its runtimes below `{OLD}`: those below `{NEW}` are not read");
            Finding::wrong(subject, message).change(section(OLD))
        }
        (3.., Some(false)) => Finding::warn(subject, of + ", which is containerd 2's").change("version = 2"),
        (3.., _) if under(false) => {
            let message =
                format!("{of}, which has its runtimes below `{NEW}`: those below `{OLD}` are not read");
            Finding::wrong(subject, message).change(section(NEW))
        }
        (2, _) if under(true) => {
            let message = format!("{of}, and names runtimes below `{NEW}`, as version 3 does");
            Finding::warn(subject, message).change("version = 3")
        }
        (2.., _) => Finding::ok(subject, of),
    };
    let mut findings = vec![finding];
    if file.disabled {
        findings.push(Finding::warn(subject, "`disabled_plugins` takes CRI away: no pod is started here"));
    }
    findings
}
