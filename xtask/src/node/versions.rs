//! The version file: `tests/programs/node/versions.toml`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, bail};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Versions {
    pub(super) debian: Debian,
    pub(super) go: Go,
    pub(super) containerd: Containerd,
    pub(super) machine: Machine,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Debian {
    pub(super) release: String,
    pub(super) packages: Vec<String>,
    /// A package that depends on the kernel's.
    pub(super) kernel: String,
    /// Packages, and how their versions begin.
    pub(super) measured: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Go {
    pub(super) cri_tools: String,
    pub(super) kubernetes: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Containerd {
    default: String,
    pub(super) releases: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Machine {
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_gib: u32,
}

/// What runs in a node.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// Every containerd release, kubelet, API server and the tools of CRI.
    Kubernetes,
    /// One containerd release, which is built in minutes.
    Containerd(&'a str),
}

impl<'a> Content<'a> {
    pub(super) fn new(without_kubernetes: bool, release: &'a str) -> Self {
        if without_kubernetes { Self::Containerd(release) } else { Self::Kubernetes }
    }

    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Kubernetes)
    }

    /// The containerd releases in it.
    pub(super) fn releases(self, versions: &'a Versions) -> Vec<&'a str> {
        match self {
            Self::Kubernetes => versions.containerd.releases.iter().map(String::as_str).collect(),
            Self::Containerd(release) => vec![release],
        }
    }
}

impl Versions {
    pub(super) fn read() -> anyhow::Result<Self> {
        let path = super::sources().join("versions.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    /// The containerd release that was requested, or the default one.
    pub(super) fn release<'a>(&'a self, requested: Option<&'a str>) -> anyhow::Result<&'a str> {
        let release = requested.unwrap_or(&self.containerd.default);
        if !self.containerd.releases.iter().any(|it| it == release) {
            bail!(
                "no containerd {release} in tests/programs/node/versions.toml; there are: {}",
                self.containerd.releases.join(", ")
            );
        }
        Ok(release)
    }
}

/// Lines for the packages with versions that begin otherwise than when the node was measured;
/// `installed` has lines of `PACKAGE VERSION`.
pub(super) fn changed(measured: &BTreeMap<String, String>, installed: &str) -> Vec<String> {
    let installed: BTreeMap<&str, &str> = installed.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut changed = Vec::new();
    for (package, version) in measured {
        match installed.get(package.as_str()) {
            Some(there) if upstream(there).starts_with(version.as_str()) => {}
            Some(there) => changed.push(format!("{package} is {there}, and was measured with {version}")),
            None => changed.push(format!("{package} is not installed, and was measured with {version}")),
        }
    }
    changed
}

/// A Debian version without its epoch.
fn upstream(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::next;

    #[test]
    fn go_modules_require_the_versions_of_the_file() {
        let versions = Versions::read().unwrap();
        let modules = [
            ("kubernetes", format!("k8s.io/kubernetes v{}", versions.go.kubernetes)),
            ("cri-tools", format!("sigs.k8s.io/cri-tools v{}", versions.go.cri_tools)),
        ];
        for (folder, required) in modules {
            let text = fs::read_to_string(super::super::sources().join(folder).join("go.mod")).unwrap();
            assert!(text.contains(&required), "{folder}/go.mod: {required}");
        }
    }

    #[test]
    fn every_containerd_release_has_a_module() {
        let versions = Versions::read().unwrap();
        for release in &versions.containerd.releases {
            assert!(next::module(release).is_some(), "{release}");
        }
        assert_eq!(versions.release(None).unwrap(), next::NEWEST);
    }

    #[test]
    fn unknown_release_is_refused_with_the_known_ones() {
        let error = Versions::read().unwrap().release(Some("1.7.0")).unwrap_err().to_string();
        assert!(error.starts_with("no containerd 1.7.0 in "), "{error}");
        assert!(error.contains("2.1.9, 2.3.7"), "{error}");
    }

    #[test]
    fn package_of_another_version_is_listed() {
        let measured = [("runc", "1.1.15"), ("crun", "1.21"), ("systemd", "257"), ("etcd-server", "3.5")];
        let measured = measured.map(|(package, version)| (package.to_owned(), version.to_owned())).into();
        let installed = "crun 1.21-1\nruncibly 1\nrunc 1.1.16+ds1-1\nsystemd 1:257.9-1\n";
        assert_eq!(
            changed(&measured, installed),
            [
                "etcd-server is not installed, and was measured with 3.5",
                "runc is 1.1.16+ds1-1, and was measured with 1.1.15"
            ]
        );
    }
}
