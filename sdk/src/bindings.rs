//! The generated Rust types of `wit/0.2.0/policy.wit`, apart because the lints do not apply to
//! them.

wit_bindgen::generate!({
    path: "wit/0.2.0",
    world: "policy",
    generate_all,
    additional_derives: [PartialEq, Eq],
    // Policies expand `export!` in their own crates.
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "coroner_sdk::bindings",
});
