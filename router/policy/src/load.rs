//! Loading: starts, describes and configures a compiled component, and checks that it is pure.

use std::sync::Arc;

use coroner_core::ruling::Fault;
use wasmtime::component::Component;

use super::bindings::Description;
use super::compile::CompileError;
use super::contract::ContractError;
use super::counts::PolicyCounts;
use super::directory::FoundPolicy;
use super::host::Host;
use super::load_error::LoadError;
use super::policy::Policy;
use super::policy_log::{PolicyLog, shortened};
use super::pure;
use super::quarantine::CircuitBreaker;

/// Bytes of a policy's own name and version: both are in every audit record.
const MAX_NAME: usize = 64;
/// Bytes of the configuration's schema, which is kept.
const MAX_SCHEMA: usize = 64 << 10;

/// Starts and configures one compiled component, and checks its description.
pub(super) fn prepare(
    host: &Host,
    found: &FoundPolicy,
    component: &Component,
    breaker: Arc<CircuitBreaker>,
    counts: Arc<PolicyCounts>,
) -> Result<Policy, LoadError> {
    let name = found.name.clone();
    let imports = host.imports(component);
    let wasi = imports.iter().any(|import| import.starts_with("wasi:"));
    let pre = host.link(component, wasi).map_err(|error| LoadError::Compile {
        policy: name.clone(),
        reason: CompileError::Contract(ContractError::World(format!(
            "does not fit its world: {}",
            one_line(&error)
        ))),
    })?;
    let failed = |call: &'static str| {
        let policy = name.clone();
        move |fault: Fault| LoadError::Start { policy, call, reason: fault.message }
    };
    let policy_log = Arc::new(PolicyLog::new(name.clone(), found.own.limits.log_rate));
    let mut instance = host.start(&pre, &policy_log, found.own.limits, wasi).map_err(failed("start"))?;
    let description = instance.describe(host).map_err(failed("describe"))?;
    described(&description).map_err(|what| LoadError::Description { policy: name.clone(), what })?;
    instance
        .configure(host, &found.own.config)
        .map_err(failed("configure"))?
        .map_err(|mistakes| LoadError::Configure { policy: name.clone(), mistakes })?;
    if !description.unknown.is_empty() {
        // A policy for a later router: it runs without them.
        tracing::warn!(
            policy = name,
            unknown = shortened(&description.unknown.join(",")),
            "the policy names kinds or facts that this router does not know; they are ignored"
        );
    }
    let policy = Policy {
        name: name.clone(),
        digest: format!("sha256:{}", found.bytes.digest),
        mode: found.own.mode,
        size: found.bytes.size,
        imports,
        description,
        own: found.own.clone(),
        vectors: found.vectors.clone(),
        breaker,
        counts,
        policy_log,
        wasi,
        pre,
    };
    let vectors = |reason| LoadError::Vectors { policy: name.clone(), reason };
    pure::check(host, &policy, instance).map_err(vectors)?;
    if let Some(text) = &found.vectors {
        pure::operators(host, &policy, text).map_err(vectors)?;
    }
    Ok(policy)
}

fn described(description: &Description) -> Result<(), String> {
    for (what, text) in [("name", &description.name), ("version", &description.version)] {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(format!("a {what} of {} bytes, not 1 to {MAX_NAME}", text.len()));
        }
    }
    match &description.config_schema {
        Some(schema) if schema.len() > MAX_SCHEMA => {
            Err(format!("a config-schema of {} bytes, over {MAX_SCHEMA}", schema.len()))
        }
        _ => Ok(()),
    }
}

/// The whole chain of causes on one line.
fn one_line(error: &wasmtime::Error) -> String {
    let texts: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
    shortened(&texts.join(": ").replace('\n', " "))
}
