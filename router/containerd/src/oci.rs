//! The part of an OCI runtime spec that is read: from containerd's API, and from a bundle.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A container's `config.json`. A client wrote it: what is missing has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct OciSpec {
    /// Names and values.
    pub annotations: BTreeMap<String, String>,
    /// Mounts into the container.
    pub mounts: Vec<SpecMount>,
    linux: SpecLinux,
}

/// One mount.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SpecMount {
    /// Path in the container.
    pub destination: String,
    /// Path on the host.
    pub source: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecLinux {
    cgroups_path: Option<String>,
    resources: SpecResources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecResources {
    memory: SpecMemory,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecMemory {
    limit: Option<i64>,
}

impl OciSpec {
    /// The memory limit in bytes; `None`: unlimited.
    pub fn memory_limit(&self) -> Option<u64> {
        self.linux.resources.memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|it| *it > 0)
    }

    /// The cgroup, in the runtime's own notation.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.linux.cgroups_path.as_deref().filter(|path| !path.is_empty())
    }
}
