//! Compiles a policy in this process: for the simulation, with the bundled components.
//! The router compiles in a process of its own.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::cache::{self, Bytes};
use super::directory::FoundPolicy;
use super::host::{self, Host};
use super::load::prepare;
use super::policy::Policy;
use super::policy_config::PolicyConfig;
use super::quarantine::CircuitBreaker;

/// Compiles and loads a component with the content of its configuration file.
pub fn compiled_in_process(
    host: &Host,
    name: &str,
    component: &[u8],
    file: &str,
) -> Result<Arc<Policy>, String> {
    let text = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    let compiled = host::compiler().and_then(|engine| engine.precompile_component(component));
    let compiled = compiled.map_err(|error| text(&error))?;
    let mut out = File::from(memfd_create("compiled", MemfdFlags::CLOEXEC).map_err(|it| text(&it))?);
    out.write_all(&compiled).map_err(|error| text(&error))?;
    let loaded = cache::load(host, &out).map_err(|error| text(&error))?;
    let settings = host.settings();
    let bytes = Bytes::copy(component, settings.file).map_err(|error| text(&error))?;
    let found = FoundPolicy {
        name: name.to_owned(),
        bytes: bytes.ok_or_else(|| text(&"the component is too large"))?,
        own: PolicyConfig::parse(file.as_bytes(), settings)?,
        toml: None,
        vectors: None,
    };
    let breaker = Arc::new(CircuitBreaker::new(name.to_owned(), settings.quarantine));
    let policy = prepare(host, &found, &loaded, breaker, Arc::default()).map_err(|error| text(&error))?;
    Ok(Arc::new(policy))
}
