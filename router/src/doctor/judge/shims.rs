//! The shims that run.

use super::super::Finding;
use super::super::shims::{Kind, Shim};

/// Characters of an id that tell it from others.
const SHORT: usize = 12;

pub(super) fn all(shims: &[Shim]) -> Vec<Finding> {
    let count = |kind: Kind| shims.iter().filter(|shim| shim.kind == kind).count();
    let (stock, wrapped, proxies) = (count(Kind::Stock), count(Kind::Wrapped), count(Kind::Proxy));
    let message = format!("{stock} stock, {wrapped} wrapped, {proxies} proxies");
    let mut findings = vec![Finding::ok("running shims", message)];
    let passed_by: Vec<String> = shims.iter().filter(|it| it.kind == Kind::PassedBy).map(who).collect();
    if !passed_by.is_empty() {
        let message = format!(
            "started by the wrapper while no router answered it, and without Coroner as long as they live: {}",
            passed_by.join(", ")
        );
        findings.push(Finding::warn("running shims", message));
    }
    if count(Kind::Unknown) > 0 {
        let message = format!("of {} it is not seen where they publish", count(Kind::Unknown));
        findings.push(Finding::warn("running shims", message));
    }
    findings
}

/// namespace/id, the id short.
pub(in crate::doctor) fn who(shim: &Shim) -> String {
    let id: String = shim.id.as_deref().unwrap_or("?").chars().take(SHORT).collect();
    format!("{}/{id}", shim.namespace.as_deref().unwrap_or("?"))
}
