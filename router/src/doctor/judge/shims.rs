//! The shims that run.

use std::path::Path;

use super::super::Finding;
use super::super::facts::{Facts, Router};
use super::super::shims::{Kind, Shim};

/// Characters of an id that tell it from others.
const SHORT: usize = 12;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let shims = &facts.shims;
    let count = |kind: Kind| shims.iter().filter(|shim| shim.kind == kind).count();
    let (stock, wrapped, proxies) = (count(Kind::Stock), count(Kind::Wrapped), count(Kind::Proxy));
    let message = format!("stock {stock}, wrapped {wrapped}, proxies {proxies}");
    let mut findings = vec![Finding::ok("running shims", message)];
    let passed_by: Vec<String> = shims.iter().filter(|it| it.kind == Kind::PassedBy).map(who).collect();
    if !passed_by.is_empty() {
        let message = format!(
            "started by the wrapper while no router answered it, and without Coroner as long as they live: {}",
            passed_by.join(", ")
        );
        findings.push(Finding::warn("running shims", message));
    }
    findings.extend(facts.router.as_ref().ok().and_then(|router| astray(shims, router)));
    if count(Kind::Unknown) > 0 {
        let message = format!("of {} it is not seen where they publish", count(Kind::Unknown));
        findings.push(Finding::warn("running shims", message));
    }
    findings
}

/// Those that publish at a socket that is no source's.
fn astray(shims: &[Shim], router: &Router) -> Option<Finding> {
    let is_ours = |path: &Path| router.sources.iter().any(|source| source.socket.path == path);
    let lost: Vec<String> = shims
        .iter()
        .filter(|shim| matches!(shim.kind, Kind::Wrapped | Kind::Proxy))
        .filter_map(|shim| Some((shim, shim.address.as_deref()?)))
        .filter(|(_, address)| !is_ours(address))
        .map(|(shim, address)| format!("{} at {}", who(shim), address.display()))
        .collect();
    (!lost.is_empty()).then(|| {
        let message =
            format!("publish at sockets that are no source's of this configuration: {}", lost.join(", "));
        Finding::warn("running shims", message)
    })
}

/// namespace/id, the id short.
pub(in crate::doctor) fn who(shim: &Shim) -> String {
    let id: String = shim.id.as_deref().unwrap_or("?").chars().take(SHORT).collect();
    format!("{}/{id}", shim.namespace.as_deref().unwrap_or("?"))
}
