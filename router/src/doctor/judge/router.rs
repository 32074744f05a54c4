//! The router's sockets, and whether they and the wrapper's file are of one mind.

use super::super::facts::{Facts, Program, Router, Socket, Source};
use super::super::wrapper::Wrapper;
use super::super::{Finding, Level};
use super::{change, wrapped};

/// Bits of a socket's mode that let others in.
const OTHERS: u32 = 0o077;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = file(facts.wrapper.as_ref());
    match &facts.router {
        Ok(router) => {
            findings.extend(addresses(facts, router));
            findings.extend(router.control.as_ref().map(control));
            findings.extend(router.sources.iter().map(|source| judge(facts.root, source)));
            if let Ok(wrapper) = &facts.wrapper {
                findings.extend(wrapped(facts).flat_map(|(runtime, program)| {
                    let found = fit(&format!("runtime {}", runtime.name), wrapper, program, router);
                    // Another user does not see which file containerd's environment names.
                    let level = if facts.root { Level::Wrong } else { Level::Warn };
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

fn file(wrapper: Result<&Wrapper, &String>) -> Vec<Finding> {
    let subject = "the wrapper's configuration";
    match wrapper {
        Ok(wrapper) if !wrapper.is_there() => {
            vec![Finding::ok(subject, format!("no {}: the defaults hold", wrapper.path.display()))]
        }
        Ok(wrapper) if wrapper.unknown().is_empty() => {
            vec![Finding::ok(subject, wrapper.path.display().to_string())]
        }
        Ok(wrapper) => {
            let keys = wrapper.unknown().join(", ");
            let message = format!(
                "not known here: {keys}. A file with a mistake counts as none: pods start without Coroner"
            );
            vec![Finding::warn(subject, message)]
        }
        Err(error) => {
            let message = format!("it counts as none, and pods start without Coroner: {error}");
            vec![Finding::wrong(subject, message)]
        }
    }
}

/// Whether the router speaks to the containerd that was looked at.
fn addresses(facts: &Facts, router: &Router) -> Option<Finding> {
    let (subject, daemon) = ("the router's containerd", &facts.containerd);
    let Some((address, ttrpc)) = &router.containerd else {
        let message = "it has none: names stay unknown, and no event reaches containerd";
        let change = format!("[containerd]\naddress = \"{}\"", daemon.address.display());
        return Some(Finding::wrong(subject, message).change(change));
    };
    if (address, ttrpc) == (&daemon.address, &daemon.ttrpc.path) {
        return None;
    }
    let message = format!("it is at {}, and containerd's configuration says otherwise", address.display());
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

fn judge(root: bool, source: &Source) -> Finding {
    let (subject, path) = (format!("source {}", source.name), source.socket.path.display());
    let mode = source.mode_name();
    match (&source.socket.file, &source.hello) {
        (Err(error), _) => Finding::wrong(subject, format!("nobody listens at {path}: {error}"))
            .change("systemctl restart coroner.service"),
        (Ok((bits, _)), _) if bits & OTHERS != 0 => {
            Finding::wrong(subject, format!("{path} has mode {bits:04o}: others may publish there"))
                .change(format!("chmod 0600 {path}"))
        }
        (Ok(_), Err(error)) if !root => Finding::warn(subject, format!("{path} cannot be asked: {error}")),
        (Ok(_), Err(error)) => Finding::wrong(subject, format!("no router answers at {path}: {error}"))
            .change("systemctl restart coroner.service"),
        (Ok(_), Ok(theirs)) if theirs != mode => {
            let message = format!(
                "who answers at {path} is in mode \"{theirs}\", and the configuration says \"{mode}\""
            );
            Finding::wrong(subject, message).change("systemctl restart coroner.service")
        }
        (Ok((_, owner)), Ok(_)) if *owner != 0 => {
            Finding::warn(subject, format!("{path} belongs to user {owner}, who may publish there"))
        }
        (Ok(_), Ok(_)) => Finding::ok(subject, format!("answers at {path} in mode \"{mode}\"")),
    }
}

/// Whether there is a source for what a wrapper starts.
fn fit(subject: &str, wrapper: &Wrapper, program: &Program, router: &Router) -> Option<Finding> {
    let name = program.name.as_deref();
    let keys = wrapper.keys(name);
    let Some(source) = router.sources.iter().find(|it| it.socket.path == keys.socket) else {
        let message =
            format!("the router has no source at {}: its pods start without Coroner", keys.socket.display());
        return Some(Finding::wrong(subject, message).change(change::source(&keys)));
    };
    let mode = source.mode_name();
    (keys.mode != mode).then(|| {
        let message = format!(
            "its wrapper is in mode \"{}\" and the router's source {} in \"{mode}\": its pods start without Coroner",
            keys.mode, source.name
        );
        Finding::wrong(subject, message).change(change::mode(name, mode))
    })
}
