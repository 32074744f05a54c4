//! The part of an OCI runtime spec with the container's annotations and its memory limit.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The parts of an OCI runtime spec that are read.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct OciSpec {
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) linux: SpecLinux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct SpecLinux {
    pub(crate) resources: SpecResources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct SpecResources {
    pub(crate) memory: SpecMemory,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct SpecMemory {
    pub(crate) limit: Option<i64>,
}
