//! What to remove, in which order, and which pods still prevent it: events of a shim that publishes
//! at a router that is gone are lost.

use super::facts::Facts;
use super::judge::name;
use super::shims::{Kind, Shim};
use super::{Finding, Severity};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![wrapper(facts)];
    let of = |kinds: &[Kind]| -> Vec<&Shim> {
        facts.shims.iter().filter(|shim| kinds.contains(&shim.kind)).collect()
    };
    let ours = of(&[Kind::Wrapped, Kind::Proxy]);
    findings.push(pods(&ours));
    findings.extend(unseen(&of(&[Kind::Unknown])));
    findings.push(router(ours.is_empty()));
    findings.push(program(&of(&[Kind::PassedBy]), ours.is_empty()));
    findings
}

/// First: no new pod is wrapped.
fn wrapper(facts: &Facts) -> Finding {
    let subject = "1. containerd's configuration";
    let runtimes = match &facts.configuration {
        Ok(configuration) => configuration.runtimes.iter().zip(&facts.programs),
        // The containerd that runs may start the wrapper.
        Err(error) if facts.containerd.version.is_ok() => {
            return Finding::wrong(subject, format!("it cannot be read: {error}"))
                .change("coroner doctor --uninstall --containerd-config FILE");
        }
        Err(error) => return Finding::warn(subject, format!("it cannot be read: {error}")),
    };
    let wrapped: Vec<String> = runtimes
        .filter(|(_, program)| program.wraps)
        .map(|(runtime, _)| match &runtime.path {
            Some(_) => format!(
                "# runtimes.{}: without `runtime_path`\nruntime_type = \"{}\"",
                runtime.name, runtime.kind
            ),
            None => format!("# runtimes.{}: with the stock shim's `runtime_type`", runtime.name),
        })
        .collect();
    if wrapped.is_empty()
        && let Some(path) = facts.unread()
    {
        let message =
            format!("{} was changed after containerd started, which has not read it", path.display());
        return Finding::wrong(subject, message).change("systemctl restart containerd");
    }
    if wrapped.is_empty() {
        return Finding::ok(subject, "no runtime uses the wrapper");
    }
    let message = "name the stock shims again and restart containerd: pods that run keep the shim they have";
    // Without the wrapper containerd could start no pod of these.
    Finding::wrong(subject, message).change(wrapped.join("\n") + "\n# systemctl restart containerd")
}

/// Second: those that were wrapped end while the router still listens.
fn pods(ours: &[&Shim]) -> Finding {
    let subject = "2. pods";
    if ours.is_empty() {
        return Finding::ok(subject, "none publishes at the router or runs behind a proxy");
    }
    let mut names: Vec<String> = ours.iter().map(|shim| name(shim)).collect();
    names.sort();
    names.dedup();
    let names = names.join(", ");
    let message =
        format!("still publish at the router or run behind a proxy, and are to end while it runs: {names}");
    Finding::wrong(subject, message).change(commands(ours))
}

/// That end them: pods through CRI, what others started through containerd.
fn commands(ours: &[&Shim]) -> String {
    let mut lines: Vec<String> = ours
        .iter()
        .filter_map(|shim| Some((shim.namespace.as_deref()?, shim.id.as_deref()?)))
        .map(|(namespace, id)| match namespace {
            "k8s.io" => format!("crictl rmp --force {id}"),
            other => format!("ctr --namespace {other} tasks kill --signal SIGKILL {id}"),
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

fn unseen(shims: &[&Shim]) -> Option<Finding> {
    let names: Vec<String> = shims.iter().map(|shim| name(shim)).collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            Severity::Warn,
            "2. pods",
            format!("where these publish is not seen: {}", names.join(", ")),
        )
        .change("sudo coroner doctor --uninstall")
    })
}

/// Third: no shim needs it any more.
fn router(may_go: bool) -> Finding {
    let subject = "3. router";
    if may_go {
        Finding::ok(subject, "it may be stopped, or lose its sources of type \"shim\"")
    } else {
        Finding::warn(subject, "not yet: it is to run until the pods above have ended")
    }
}

/// Last: containerd calls it once more when a pod ends.
fn program(passed_by: &[&Shim], may_go: bool) -> Finding {
    let subject = "4. wrapper";
    let names: Vec<String> = passed_by.iter().map(|shim| name(shim)).collect();
    match (may_go, names.is_empty()) {
        (true, true) => Finding::ok(subject, "its program and /etc/coroner/shim.toml may be removed"),
        (false, _) => {
            Finding::warn(subject, "not yet: containerd calls it once more when each of those pods ends")
        }
        (true, false) => {
            let message = "containerd calls it once more when these end, which it started without the router";
            Finding::wrong(subject, format!("{message}: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::{BY_PATH, OLD_CRI, STOCK, bad, changed, machine, shim};
    use super::*;

    #[test]
    fn router_may_be_removed_once_no_shim_needs_it() {
        let wrong = |facts: &Facts| judge(facts).iter().any(|it| it.level == Severity::Wrong);
        let mut facts = machine(&format!("{OLD_CRI}{STOCK}"), "1.7.24");
        assert_eq!(bad(&judge(&facts)), Vec::<&Finding>::new());
        for (kind, expect) in [
            (Kind::Stock, false),
            (Kind::PassedBy, true),
            (Kind::Unknown, false),
            (Kind::Wrapped, true),
            (Kind::Proxy, true),
        ] {
            facts.shims = vec![shim(kind, "s1")];
            assert_eq!(wrong(&facts), expect, "{kind:?}");
        }
        let pods = judge(&facts).into_iter().find(|it| it.level == Severity::Wrong).unwrap();
        assert!(pods.message.contains("k8s.io/s1"), "{pods:?}");
        assert_eq!(pods.change.as_deref(), Some("crictl rmp --force s1"));
        facts.shims.clear();
        facts.configuration.as_mut().unwrap().changed = changed(62);
        assert!(wrong(&facts), "the containerd that runs has not read that it may go");
        let still = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
        assert!(judge(&still)[0].message.contains("name the stock shims again"));
        assert!(wrong(&still), "without the wrapper no pod would start");
        facts.shims.clear();
        facts.configuration = Err("no such file".to_owned());
        assert!(wrong(&facts), "the containerd that runs may start the wrapper");
        facts.containerd.version = Err("no socket".to_owned());
        assert!(!wrong(&facts), "there is no containerd");
    }
}
