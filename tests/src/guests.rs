//! Bad guests: core modules written by hand, each with one vice, made components of the policy world.

use std::path::Path;

use anyhow::Context;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The component of `tests/guests/NAME.wat`.
pub fn component(name: &str) -> anyhow::Result<Vec<u8>> {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
    let read = |file: String| {
        let path = guests.join(&file);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let module = format!("(module {} {})", read("prelude.wat".to_owned())?, read(format!("{name}.wat"))?);
    let mut core = wat::parse_str(module)?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/wit"))?;
    let world = resolve.select_world(&[package], Some("policy"))?;
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().validate(true).module(&core)?.encode()
}
