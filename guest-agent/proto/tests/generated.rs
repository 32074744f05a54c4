//! The committed bindings are those of the `.proto` files. `REGENERATE=1 cargo test -p
//! coroner-proto` writes them anew.

use std::fs;
use std::path::Path;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

#[test]
fn generated_code_is_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = here.join("src/generated");
    let fresh = tempfile::tempdir().unwrap();
    Codegen::new()
        .out_dir(fresh.path())
        .inputs(["agent.proto", "kata.proto", "shim.proto"].map(|name| here.join(name)))
        .include(here)
        .rust_protobuf()
        .customize(Customize { async_all: true, gen_mod: true, ..Customize::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .unwrap();
    for name in
        ["agent.rs", "agent_ttrpc.rs", "kata.rs", "kata_ttrpc.rs", "mod.rs", "shim.rs", "shim_ttrpc.rs"]
    {
        let new = fs::read_to_string(fresh.path().join(name)).unwrap();
        if std::env::var_os("REGENERATE").is_some() {
            fs::write(committed.join(name), &new).unwrap();
        }
        let old = fs::read_to_string(committed.join(name)).unwrap_or_default();
        assert!(old == new, "{name} is not what the .proto files give; REGENERATE=1 writes it anew");
    }
}
