//! The router's sockets, and whether they fit the wrapper's file.

use std::collections::BTreeSet;

use coroner::node::UnwatchedContainer;

use super::super::facts::{Facts, Program, RouterFacts, Socket, SourceFacts};
use super::super::wrapper::Wrapper;
use super::super::{Finding, Severity};
use super::{change, wrapped};

/// Bits of a socket's mode that let others in.
const OTHERS: u32 = 0o077;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = file(&facts.wrapper);
    match &facts.router {
        Ok(router) => {
            findings.extend(addresses(facts, router));
            findings.extend(router.control.as_ref().map(control));
            findings.extend(router.sources.iter().map(|source| judge(facts.root, source)));
            findings.extend(agents(facts.root, router));
            findings.extend(router.unwatched.as_deref().and_then(|it| unwatched(router, it)));
            // With a mistake in its file the wrapper starts pods without the router.
            if facts.wrapper.file.mistake().is_none() {
                findings.extend(wrapped(facts).flat_map(|(runtime, program)| {
                    let found = fit(&format!("runtime {}", runtime.name), &facts.wrapper, program, router);
                    // Another user does not see which file containerd's environment names.
                    let level = if facts.root { Severity::Wrong } else { Severity::Warn };
                    found.map(|finding| Finding { level, ..finding })
                }));
            }
        }
        Err(error) => findings.push(
            Finding::wrong("the router's configuration", error.clone()).change("coroner check --config FILE"),
        ),
    }
    findings
}

fn file(wrapper: &Wrapper) -> Vec<Finding> {
    let (subject, path) = ("the wrapper's configuration", wrapper.path.display());
    let mut findings = vec![match wrapper.file.mistake() {
        Some(mistake) => {
            let message = format!("it counts as none, and pods start without Coroner: {mistake}");
            Finding::wrong(subject, message)
        }
        None if !wrapper.file.is_there() => Finding::ok(subject, format!("no {path}: the defaults hold")),
        None => Finding::ok(subject, path.to_string()),
    }];
    findings.extend(wrapper.unused().into_iter().map(|table| {
        let message = format!(
            "{path}: [runtime.{table}] is ignored: no wrapper in containerd's PATH is called \
             containerd-shim-coroner-{table}-v2 or containerd-shim-{table}-v2"
        );
        Finding::warn(subject, message).change(change::link(table))
    }));
    findings
}

/// Whether the router is configured for the containerd that was checked.
fn addresses(facts: &Facts, router: &RouterFacts) -> Option<Finding> {
    let (subject, daemon) = ("the router's containerd", &facts.containerd);
    let Some((address, ttrpc)) = &router.containerd else {
        let message = "it has none: names stay unknown, and no event reaches containerd";
        let change = format!("[containerd]\naddress = \"{}\"", daemon.address.display());
        return Some(Finding::wrong(subject, message).change(change));
    };
    if (address, ttrpc) == (&daemon.address, &daemon.ttrpc.path) {
        return None;
    }
    let message = format!("it is at {}, which differs from containerd's configuration", address.display());
    let (address, ttrpc) = (daemon.address.display(), daemon.ttrpc.path.display());
    let change = format!("[containerd]\naddress = \"{address}\"\nttrpc_address = \"{ttrpc}\"");
    Some(Finding::wrong(subject, message).change(change))
}

fn control(socket: &Socket) -> Finding {
    let (subject, path) = ("control socket", socket.path.display());
    match &socket.file {
        Ok((mode, _)) if mode & OTHERS != 0 => {
            Finding::wrong(subject, format!("{path} has mode {mode:04o}: others may change what is ruled"))
                .change(format!("chmod 0600 {path}"))
        }
        Ok(_) => Finding::ok(subject, path.to_string()),
        Err(error) => Finding::warn(subject, format!("{path}: {error}")),
    }
}

fn judge(root: bool, source: &SourceFacts) -> Finding {
    let (subject, path) = (format!("source {}", source.name), source.socket.path.display());
    let mode = source.mode.name();
    match (&source.socket.file, &source.hello) {
        (Err(error), _) => Finding::wrong(subject, format!("no process listens at {path}: {error}"))
            .change("systemctl restart coroner.service"),
        (Ok((bits, _)), _) if bits & OTHERS != 0 => {
            Finding::wrong(subject, format!("{path} has mode {bits:04o}: others may publish there"))
                .change(format!("chmod 0600 {path}"))
        }
        (Ok(_), Err(error)) if !root => Finding::warn(subject, format!("{path} does not answer: {error}")),
        (Ok(_), Err(error)) => Finding::wrong(subject, format!("no router answers at {path}: {error}"))
            .change("systemctl restart coroner.service"),
        (Ok(_), Ok(theirs)) if theirs != mode => {
            let message =
                format!("the router at {path} is in mode \"{theirs}\", and its configuration has \"{mode}\"");
            Finding::wrong(subject, message).change("systemctl restart coroner.service")
        }
        (Ok((_, owner)), Ok(_)) if *owner != 0 => Finding::warn(
            subject,
            format!("{path} belongs to user {owner}, and every process of that user may publish there"),
        ),
        (Ok(_), Ok(_)) => Finding::ok(subject, format!("answers at {path} in mode \"{mode}\"")),
    }
}

/// The agent of this node, which watches what shims cannot report.
fn agents(root: bool, router: &RouterFacts) -> Vec<Finding> {
    let cost = "without it kills may be missed, and no kill has its victim";
    if router.agents.is_empty() && router.sources.is_empty() {
        return Vec::new();
    }
    if router.agents.is_empty() {
        let message = format!("no source reads an agent of this node: {cost}");
        let change = "[[source]]\nname = \"node\"\ntype = \"agent\"\n\
                      address = \"unix:///run/coroner/agent.sock\"\nmode = \"beside\"\n\
                      # systemctl enable --now coroner-agent.service";
        return vec![Finding::warn("agent", message).change(change)];
    }
    let judge = |(name, socket): &(String, Socket)| {
        let (subject, path) = (format!("source {name}"), socket.path.display());
        match &socket.file {
            Ok(_) => Finding::ok(subject, format!("an agent listens at {path}")),
            Err(error) => {
                let message = format!("no agent listens at {path} ({error}): {cost}");
                let level = if root { Severity::Wrong } else { Severity::Warn };
                Finding::new(level, subject, message).change("systemctl enable --now coroner-agent.service")
            }
        }
    };
    router.agents.iter().map(judge).collect()
}

/// Containers that the agents do not find.
fn unwatched(router: &RouterFacts, containers: &[UnwatchedContainer]) -> Option<Finding> {
    const NAMED: usize = 5;
    let named = containers.iter().take(NAMED).map(|it| format!("{} at {}", it.id, it.cgroup));
    let mut names = named.collect::<Vec<_>>().join(", ");
    if containers.len() > NAMED {
        names.push_str(&format!(" and {} more", containers.len() - NAMED));
    }
    let message = format!("it does not find these containers, and their OOM kills may be missed: {names}");
    let finding = Finding::warn("agent", message);
    let roots: BTreeSet<&str> = containers.iter().filter_map(|it| it.root.as_deref()).collect();
    let (_, socket) = router.agents.first().filter(|_| !containers.is_empty())?;
    if roots.is_empty() {
        return Some(finding);
    }
    let options: String = roots.iter().map(|root| format!(" --root '+{root}'")).collect();
    let (program, path) = ("/usr/sbin/coroner-agent", socket.path.display());
    Some(finding.change(format!(
        "systemctl edit coroner-agent.service, with the options that it has already:\n[Service]\nExecStart=\n\
         ExecStart={program} run --listen unix://{path}{options}\n# systemctl restart coroner-agent.service"
    )))
}

/// Whether there is a source for what a wrapper starts.
fn fit(subject: &str, wrapper: &Wrapper, program: &Program, router: &RouterFacts) -> Option<Finding> {
    let keys = wrapper.file.config(&program.name);
    let Some(source) = router.sources.iter().find(|it| it.socket.path == keys.socket) else {
        let message =
            format!("the router has no source at {}: its pods start without Coroner", keys.socket.display());
        return Some(Finding::wrong(subject, message).change(change::source(&keys)));
    };
    let mode = source.mode.name();
    (keys.mode.name() != mode).then(|| {
        let message = format!(
            "its wrapper is in mode \"{}\" and the router's source {} in \"{mode}\": its pods start without Coroner",
            keys.mode.name(),
            source.name
        );
        let table = wrapper.file.runtime(&program.name).or_else(|| program.name.wrapped());
        Finding::wrong(subject, message).change(change::mode(table, mode))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{STOCK, machine};
    use super::*;

    #[test]
    fn unwatched_containers_are_one_finding_with_every_root() {
        let facts = machine(STOCK, "2.4.2");
        let router = facts.router.as_ref().unwrap();
        let container = |id: &str, root: Option<&str>| UnwatchedContainer {
            id: id.to_owned(),
            containerd_namespace: "default".to_owned(),
            cgroup: format!("/{id}"),
            root: root.map(str::to_owned),
        };
        assert!(unwatched(router, &[]).is_none());
        let finding = unwatched(router, &[container("a", None)]).unwrap();
        assert!(finding.message.ends_with(": a at /a") && finding.change.is_none());
        let containers: Vec<_> = ["a", "b", "c", "d", "e", "f"]
            .map(|id| container(id, Some(if id < "d" { "x" } else { "y" })))
            .into();
        let finding = unwatched(router, &containers).unwrap();
        assert!(finding.message.ends_with("e at /e and 1 more"), "{}", finding.message);
        let change = finding.change.unwrap();
        let expect =
            "run --listen unix:///run/coroner/agent.sock --root '+x' --root '+y'\n# systemctl restart";
        assert!(change.contains(expect), "{change}");
    }
}
