//! The built-in default policy, as bytes.

/// The name of the built-in default policy.
pub const BUILT_IN: &str = "00-kubernetes";
pub(super) static BUILT_IN_WASM: &[u8] = include_bytes!("../../../plugins/dist/kubernetes.wasm");
