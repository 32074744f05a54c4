//! The shims that run.

use std::path::Path;

use coroner::node::config::Mode;

use super::super::Finding;
use super::super::facts::{Facts, RouterFacts};
use super::super::shims::{Kind, Shim};
use crate::render::short_id;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let shims = &facts.shims;
    let count = |kind: Kind| shims.iter().filter(|shim| shim.kind == kind).count();
    let (stock, wrapped, proxies) = (count(Kind::Stock), count(Kind::Wrapped), count(Kind::Proxy));
    let message = format!("stock {stock}, wrapped {wrapped}, proxies {proxies}");
    let mut findings = vec![Finding::ok("running shims", message)];
    let passed_by: Vec<String> = shims.iter().filter(|it| it.kind == Kind::PassedBy).map(name).collect();
    if !passed_by.is_empty() {
        let message = format!(
            "started by the wrapper while no router answered it, and without Coroner as long as they live: {}",
            passed_by.join(", ")
        );
        findings.push(Finding::warn("running shims", message));
    }
    findings.extend(facts.router.as_ref().ok().and_then(|router| astray(shims, router)));
    findings.extend(facts.router.as_ref().ok().and_then(|router| without_proxy(shims, router)));
    if count(Kind::Unknown) > 0 {
        let message = format!("of {} it is not seen where they publish", count(Kind::Unknown));
        findings.push(Finding::warn("running shims", message));
    }
    findings
}

/// Those that publish at a socket without a source.
fn astray(shims: &[Shim], router: &RouterFacts) -> Option<Finding> {
    let is_ours = |path: &Path| router.sources.iter().any(|source| source.socket.path == path);
    let lost: Vec<String> = shims
        .iter()
        .filter(|shim| matches!(shim.kind, Kind::Wrapped | Kind::Proxy))
        .filter_map(|shim| Some((shim, shim.address.as_deref()?)))
        .filter(|(_, address)| !is_ours(address))
        .map(|(shim, address)| format!("{} at {}", name(shim), address.display()))
        .collect();
    (!lost.is_empty()).then(|| {
        let message =
            format!("publish at sockets without a source in this configuration: {}", lost.join(", "));
        Finding::warn("running shims", message)
    })
}

/// Shims that publish to a source of mode `proxy` and have no proxy. The wrapper starts both with
/// one id, and sets the source's socket only in the source's own mode: a missing proxy is a
/// fallback.
fn without_proxy(shims: &[Shim], router: &RouterFacts) -> Option<Finding> {
    let is_proxied = |path: &Path| {
        let mut sources = router.sources.iter().filter(|source| source.mode == Mode::Proxy);
        sources.any(|source| source.socket.path == path)
    };
    let has_proxy = |shim: &Shim| {
        let mut proxies = shims.iter().filter(|it| it.kind == Kind::Proxy);
        proxies.any(|it| (&it.namespace, &it.id) == (&shim.namespace, &shim.id))
    };
    let missing: Vec<String> = shims
        .iter()
        .filter(|shim| shim.kind == Kind::Wrapped && shim.address.as_deref().is_some_and(is_proxied))
        .filter(|shim| !has_proxy(shim))
        .map(name)
        .collect();
    (!missing.is_empty()).then(|| {
        let message = format!(
            "publish to a source of mode \"proxy\" and have no proxy, so that CRI shows the shim's status \
             and each TaskExit is published 1 s late: {}. The wrapper logged the reason; recreate \
             the pods when it is removed",
            missing.join(", ")
        );
        Finding::wrong("running shims", message).change("journalctl -t containerd-shim-coroner-v2")
    })
}

/// namespace/id, the id short.
pub(in crate::doctor) fn name(shim: &Shim) -> String {
    let id = short_id(shim.id.as_deref().unwrap_or("?"));
    format!("{}/{id}", shim.namespace.as_deref().unwrap_or("?"))
}
