//! Guests that are not as they should be: core modules written by hand, each with one vice, made
//! components of the policy world.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The component of `tests/guests/NAME.wat`.
pub fn component(name: &str) -> anyhow::Result<Vec<u8>> {
    let own = text(&format!("{name}.wat"))?;
    encode(&module("", &own)?, World::Policy)
}

/// The component of `tests/guests/wasi/NAME.wat`, on the adapter that programs for WASI are made
/// components with: its imports are those that a program's output and clocks have.
pub fn wasi_component(name: &str) -> anyhow::Result<Vec<u8>> {
    let own = text(&format!("wasi/{name}.wat"))?;
    let (imports, own) = own.split_once(";; ---").context("a line that parts imports from the rest")?;
    encode(&module(imports, own)?, World::Wasi)
}

/// A good policy that imports a network as well.
pub fn sockets_component() -> anyhow::Result<Vec<u8>> {
    const IMPORT: &str =
        r#"(import "wasi:sockets/instance-network@0.2.0" "instance-network" (func (result i32)))"#;
    encode(&module(IMPORT, &text("passer.wat")?)?, World::Sockets)
}

/// The same component with a custom section of nothing, `size` bytes in all.
pub fn padded(component: &[u8], size: usize) -> Vec<u8> {
    let mut padded = component.to_vec();
    // The section: id 0, its size in five bytes, a name of one character, zeros.
    let content = size - component.len() - 6;
    let mut left = content;
    padded.push(0);
    for at in 0..5 {
        let more = if at < 4 { 0x80 } else { 0 };
        padded.push(u8::try_from(left & 0x7f).expect("seven bits") | more);
        left >>= 7;
    }
    padded.extend([1, b'x']);
    padded.resize(size, 0);
    padded
}

/// A good policy with many unused functions, some 270 bytes each.
pub fn large(functions: usize) -> anyhow::Result<Vec<u8>> {
    let mut own = text("passer.wat")?;
    for at in 0..functions {
        write!(own, "(func (param i64 i64) (result i64) (local.get 0)")?;
        for step in 0..24 {
            let number = (at + 1) * 40_503 + step;
            write!(own, "(i64.const {number}) (i64.xor) (local.get 1) (i64.add)")?;
        }
        own.push(')');
    }
    encode(&module("", &own)?, World::Policy)
}

/// A good policy beside a function no compiler is done with in a minute and a gigabyte: twenty
/// thousand loops, each within the one before, and two thousand locals that live through all of
/// them.
pub fn bomb() -> anyhow::Result<Vec<u8>> {
    const LOCALS: usize = 2000;
    const BLOCKS: usize = 20_000;
    let mut own = text("passer.wat")?;
    own.push_str("(func (export \"bomb\") (param i32) (result i64)");
    own.push_str(&"(local i64)".repeat(LOCALS));
    for at in 0..BLOCKS {
        let (one, other) = (at % LOCALS + 1, (at * 7) % LOCALS + 1);
        write!(
            own,
            "(loop (br_if 0 (local.get 0)) (local.set {one} (i64.add (local.get {one}) (local.get {other}))))"
        )?;
    }
    own.push_str("(i64.const 0)");
    for at in 1..=LOCALS {
        write!(own, "(local.get {at}) (i64.xor)")?;
    }
    own.push(')');
    encode(&module("", &own)?, World::Policy)
}

/// A good policy of contract 0.2.0 that names kinds and facts of a later router.
pub fn later_kinds() -> anyhow::Result<Vec<u8>> {
    let prelude = text("prelude.wat")?;
    let (shared, _) =
        prelude.split_once("(func (export \"coroner:policy/rules@0.1.0#describe").unwrap_or_default();
    let own = text("contract-0.2/later-kinds.wat")?;
    let rest = [shared, &text("configure.wat")?, &text("passer.wat")?].concat().replace("@0.1.0", "@0.2.0");
    encode_as("0.2.0", &wat::parse_str(format!("(module {rest} {own})"))?, World::Policy)
}

/// A component that exports something else.
pub fn wrong_world() -> anyhow::Result<Vec<u8>> {
    let text = r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func (export "run") (canon lift (core func $i "f"))))"#;
    Ok(wat::parse_str(text)?)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

fn text(file: &str) -> anyhow::Result<String> {
    let path = folder().join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn module(imports: &str, own: &str) -> anyhow::Result<Vec<u8>> {
    // A guest may be bad at taking its configuration too.
    let configure = if own.contains("#configure\"") { String::new() } else { text("configure.wat")? };
    Ok(wat::parse_str(format!("(module {imports} {} {configure} {own})", text("prelude.wat")?))?)
}

/// What a guest's world is beyond that of policies.
#[derive(PartialEq)]
enum World {
    Policy,
    /// WASI through the adapter.
    Wasi,
    Sockets,
}

fn encode(core: &[u8], beyond: World) -> anyhow::Result<Vec<u8>> {
    encode_as("0.1.0", core, beyond)
}

/// `contract`: the version of the policy contract.
fn encode_as(contract: &str, core: &[u8], beyond: World) -> anyhow::Result<Vec<u8>> {
    const SOCKETS: &str =
        "package wasi:sockets@0.2.0; interface instance-network { instance-network: func() -> u32; }";
    const GREEDY: &str = "package a:greedy; world policy { include coroner:policy/policy@0.1.0; \
                          import wasi:sockets/instance-network@0.2.0; }";
    let mut core = core.to_vec();
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/wit").join(contract);
    let (mut package, _) = resolve.push_path(wit)?;
    if beyond == World::Sockets {
        resolve.push_str("sockets.wit", SOCKETS)?;
        package = resolve.push_str("greedy.wit", GREEDY)?;
    }
    let world = resolve.select_world(&[package], Some("policy"))?;
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8)?;
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&core)?;
    if beyond == World::Wasi {
        encoder.adapter("wasi_snapshot_preview1", WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?;
    }
    encoder.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_in_the_tree_is_a_component() {
        for (at, make) in [(folder(), component as fn(&str) -> _), (folder().join("wasi"), wasi_component)] {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                if path.is_file() && !["prelude", "configure"].contains(&name) {
                    make(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                }
            }
        }
        sockets_component().unwrap();
        wrong_world().unwrap();
        later_kinds().unwrap();
    }

    #[test]
    fn padding_makes_exactly_the_size() {
        let good = component("passer").unwrap();
        assert_eq!(padded(&good, 5_000_000).len(), 5_000_000);
    }
}
