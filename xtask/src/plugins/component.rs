//! A core module into a component that imports nothing but the log.

use anyhow::{Context, bail};
use wasmparser::{Validator, WasmFeatures};
use wit_component::{ComponentEncoder, DecodedWasm};

const IMPORT: &str = "coroner:policy/log@";
const EXPORT: &str = "coroner:policy/rules@";

/// Wraps a core module that carries its world, and checks that it is a policy.
pub(crate) fn wrap(core: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = ComponentEncoder::default();
    let component = encoder.validate(true).module(core)?.encode().context("cannot make a component of it")?;
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(&component)
        .context("it is not valid")?;
    let DecodedWasm::Component(resolve, world) = wit_component::decode(&component)? else {
        bail!("it is a package, not a component");
    };
    let world = &resolve.worlds[world];
    for key in world.imports.keys() {
        let name = resolve.name_world_key(key);
        // The types the log and the rules share come along as an import without functions.
        let types = name.starts_with("coroner:policy/types@");
        if !types && !name.starts_with(IMPORT) {
            bail!("it imports {name}; a policy may import {IMPORT}... alone");
        }
    }
    if !world.exports.keys().any(|key| resolve.name_world_key(key).starts_with(EXPORT)) {
        bail!("it does not export {EXPORT}...");
    }
    Ok(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_that_is_not_a_policy_is_refused() {
        // An empty core module: magic and version.
        let error = wrap(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(format!("{error:#}").contains("coroner:policy/rules"), "{error:#}");
    }
}
