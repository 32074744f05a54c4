//! The Rust face of `wit/policy.wit`, generated; apart, because the lints of this workspace are not meant for it.

wit_bindgen::generate!({
    path: "wit",
    world: "policy",
    generate_all,
    additional_derives: [PartialEq, Eq],
    // Policies expand `export!` in their own crates.
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "coroner_sdk::bindings",
});
