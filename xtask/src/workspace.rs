//! Where things are in the tree, and what is found there.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// The one build of all programs and tests. With other features the engine is built again.
pub(crate) const BUILD: [&str; 6] = ["build", "--release", "--workspace", "--bins", "--tests", "--locked"];

/// The root of the tree that this program was built from.
pub(crate) fn root() -> PathBuf {
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("xtask is a folder of the workspace").to_owned()
}

/// A target folder beside the usual one, for builds that must not share it: other flags, or another
/// compiler.
pub(crate) fn target_dir(purpose: &str) -> PathBuf {
    let usual = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let mut name = root().join(usual).into_os_string();
    name.push("-");
    name.push(purpose);
    name.into()
}

/// The cargo that runs this program, in the root.
pub(crate) fn cargo() -> Command {
    cargo_at(&env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Some cargo, in the root.
pub(crate) fn cargo_at(program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env_remove("CARGO");
    // Set by the cargo that runs this program, for this package: build scripts of others must not
    // see them.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "LD_LIBRARY_PATH"
        {
            command.env_remove(&key);
        }
    }
    command
}

/// Names of the targets in a folder of tests or benchmarks: `NAME.rs` and `NAME/main.rs`.
pub(crate) fn targets(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    if !folder.exists() {
        return Ok(BTreeSet::new());
    }
    let mut names = BTreeSet::new();
    for path in entries(folder)? {
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
            let name = path.file_stem().expect("an entry has a name");
            names.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// What is in a folder, sorted.
pub(crate) fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        paths.push(entry.with_context(|| format!("cannot read {}", folder.display()))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The folders of the workspace's packages, relative to the root.
pub(crate) fn members() -> anyhow::Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(serde::Deserialize)]
    struct Workspace {
        members: Vec<PathBuf>,
    }
    let path = root().join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    Ok(manifest.workspace.members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_targets_are_files_and_folders_with_a_main() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["agent/main.rs", "agent/more.rs", "harness/mod.rs", "containerd.rs", "notes.md"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found: Vec<String> = targets(folder.path()).unwrap().into_iter().collect();
        assert_eq!(found, ["agent", "containerd"]);
        assert!(targets(&folder.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn members_are_those_of_this_workspace() {
        assert!(members().unwrap().contains(&PathBuf::from("xtask")));
    }
}
