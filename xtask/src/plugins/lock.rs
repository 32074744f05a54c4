//! The part of Cargo.lock that one package depends on: a bump elsewhere leaves a plugin current.

use std::collections::BTreeSet;

use anyhow::Context;
use serde::Deserialize;

use super::manifest;

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// A hash over name, version and checksum of a package's dependencies, near and far.
pub(crate) fn closure_hash(lock: &str, package: &str) -> anyhow::Result<String> {
    Ok(manifest::hex(closure(lock, package)?.join("\n").as_bytes()))
}

fn closure(lock: &str, package: &str) -> anyhow::Result<Vec<String>> {
    let lock: Lock = toml::from_str(lock).context("cannot parse Cargo.lock")?;
    let mut found = BTreeSet::new();
    let mut open = vec![lock.find(package)?];
    while let Some(package) = open.pop() {
        let checksum = package.checksum.as_deref().unwrap_or("here");
        if found.insert(format!("{} {} {checksum}", package.name, package.version)) {
            for dependency in &package.dependencies {
                open.push(lock.find(dependency)?);
            }
        }
    }
    Ok(found.into_iter().collect())
}

impl Lock {
    /// `wanted` is `name`, `name version`, or `name version (source)`, as short as it is unique.
    fn find(&self, wanted: &str) -> anyhow::Result<&Package> {
        let mut words = wanted.split(' ');
        let name = words.next();
        let version = words.next();
        self.package
            .iter()
            .find(|package| {
                Some(package.name.as_str()) == name
                    && version.is_none_or(|version| package.version == version)
            })
            .with_context(|| format!("Cargo.lock has no package {wanted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
        version = 4
        [[package]]
        name = "policy"
        version = "0.1.0"
        dependencies = ["syn 2.0.0", "sdk"]
        [[package]]
        name = "sdk"
        version = "0.1.0"
        dependencies = ["syn 2.0.0 (registry+https://example.org)", "policy"]
        [[package]]
        name = "syn"
        version = "1.0.0"
        checksum = "old"
        dependencies = ["engine"]
        [[package]]
        name = "syn"
        version = "2.0.0"
        checksum = "new"
        [[package]]
        name = "engine"
        version = "48.0.0"
        checksum = "big"
    "#;

    #[test]
    fn lock_closure_holds_exactly_the_dependencies() {
        let found = closure(LOCK, "policy").unwrap();
        assert_eq!(found, ["policy 0.1.0 here", "sdk 0.1.0 here", "syn 2.0.0 new"]);
    }

    #[test]
    fn lock_hash_changes_only_with_a_dependency() {
        let hash = |lock: &str| closure_hash(lock, "policy").unwrap();
        assert_eq!(hash(LOCK), hash(&LOCK.replace("48.0.0", "49.0.0")));
        assert_ne!(hash(LOCK), hash(&LOCK.replace("\"new\"", "\"newer\"")));
    }

    #[test]
    fn package_that_is_not_locked_is_named() {
        let error = closure(LOCK, "absent").unwrap_err();
        assert_eq!(error.to_string(), "Cargo.lock has no package absent");
    }
}
