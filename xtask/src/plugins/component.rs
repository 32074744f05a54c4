//! A core module into a component that imports nothing but the policy contract.

use anyhow::{Context, bail};
use wasmparser::{Validator, WasmFeatures};
use wit_component::{ComponentEncoder, DecodedWasm};

/// Without functions, the types that the other interfaces share.
const IMPORTS: [&str; 3] = ["coroner:policy/evidence@", "coroner:policy/log@", "coroner:policy/types@"];
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
        if !IMPORTS.iter().any(|allowed| name.starts_with(allowed)) {
            bail!("it imports {name}; a policy of this tree may import {}", IMPORTS.join(", "));
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
