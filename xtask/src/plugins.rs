//! Builds the bundled policies, and checks whether the committed ones are what the sources give.

mod component;
mod lock;
mod manifest;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{process, workspace};
use manifest::{File, Manifest};
use toolchain::Toolchain;

/// Folders of policies: each sub-folder is named after its policy.
const FOLDERS: [&str; 2] = ["plugins", "examples/policies"];

/// Builds all into `plugins/dist`.
pub(crate) fn write(new_toolchain: bool) -> anyhow::Result<()> {
    let dist = workspace::root().join("plugins/dist");
    let committed = Manifest::read(&dist)?;
    let pinned = committed.as_ref().map(|manifest| &manifest.toolchain);
    let toolchain = Toolchain::find(pinned)?;
    if let Some(pinned) = pinned
        && *pinned != toolchain.identity
        && !new_toolchain
    {
        bail!(
            "plugins/dist was built with another toolchain, and would change for that alone:\n{}\nhere:\n{}\n\
             --new-toolchain writes it nevertheless",
            pinned.shown(),
            toolchain.identity.shown()
        );
    }
    let built = build(&toolchain)?;
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    for policy in &built {
        let path = dist.join(&policy.file);
        fs::write(&path, &policy.bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    manifest_of(&toolchain, &built).write(&dist)
}

/// Builds all into a folder of its own, which it answers, and compares them with `plugins/dist`:
/// byte for byte where the compiler is the one that built those; else what they do is left to the
/// suite `policies` to compare.
pub(crate) fn check() -> anyhow::Result<PathBuf> {
    let dist = workspace::root().join("plugins/dist");
    let committed =
        Manifest::read(&dist)?.context("plugins/dist/manifest.json is missing: cargo xtask plugins")?;
    let toolchain = Toolchain::find(Some(&committed.toolchain))?;
    let built = build(&toolchain)?;
    let rebuilt = workspace::target_dir("plugins").join("rebuilt");
    if rebuilt.exists() {
        fs::remove_dir_all(&rebuilt).with_context(|| format!("cannot empty {}", rebuilt.display()))?;
    }
    fs::create_dir_all(&rebuilt).with_context(|| format!("cannot make {}", rebuilt.display()))?;
    for policy in &built {
        let path = rebuilt.join(&policy.file);
        fs::write(&path, &policy.bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let current = manifest_of(&toolchain, &built);
    let mistakes = stale(&dist, &committed, &current)?;
    if !mistakes.is_empty() {
        bail!("plugins/dist is not current:\n  {}\nrun: cargo xtask plugins", mistakes.join("\n  "));
    }
    if committed.toolchain == current.toolchain {
        println!("plugins/dist is byte for byte what these sources give");
    } else {
        println!(
            "plugins/dist was built with another toolchain, so bytes are not compared; the suite `policies` compares what \
             they rule.\ncommitted:\n{}\nhere:\n{}",
            committed.toolchain.shown(),
            current.toolchain.shown()
        );
    }
    Ok(rebuilt)
}

struct Built {
    file: String,
    bytes: Vec<u8>,
    lock: String,
}

fn build(toolchain: &Toolchain) -> anyhow::Result<Vec<Built>> {
    let root = workspace::root();
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let target = workspace::target_dir("plugins");
    let mut built = Vec::new();
    for name in policies()? {
        let package = format!("coroner-policy-{name}");
        println!(
            "building {package} with {} ({})",
            toolchain.identity.name(),
            toolchain.expectation(&target)
        );
        let start = Instant::now();
        // One at a time: together the features of one, and their size, would be those of all.
        process::run(&mut toolchain.build(&package, &target))?;
        let core =
            target.join("wasm32-unknown-unknown/plugin").join(format!("{}.wasm", package.replace('-', "_")));
        let core = fs::read(&core).with_context(|| format!("cannot read {}", core.display()))?;
        let bytes = component::wrap(&core).with_context(|| format!("{package} makes no policy component"))?;
        println!("built {name}.wasm, {} bytes, in {:.1} s", bytes.len(), start.elapsed().as_secs_f64());
        built.push(Built { file: format!("{name}.wasm"), bytes, lock: lock::closure_hash(&lock, &package)? });
    }
    Ok(built)
}

/// Names of the policies in the tree.
fn policies() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in FOLDERS {
        for path in workspace::entries(&workspace::root().join(folder))? {
            if path.join("Cargo.toml").exists() {
                names.push(path.file_name().expect("an entry has a name").to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

fn manifest_of(toolchain: &Toolchain, built: &[Built]) -> Manifest {
    let files =
        built.iter().map(|policy| (policy.file.clone(), File::of(&policy.bytes, policy.lock.clone())));
    Manifest { toolchain: toolchain.identity.clone(), files: files.collect() }
}

/// What of `plugins/dist` is not as the sources have it.
fn stale(dist: &Path, committed: &Manifest, current: &Manifest) -> anyhow::Result<Vec<String>> {
    let mut mistakes = Vec::new();
    let names = committed.files.keys().chain(current.files.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let (Some(old), Some(new)) = (committed.files.get(name), current.files.get(name)) else {
            let missing = if current.files.contains_key(name) { "the manifest" } else { "the sources" };
            mistakes.push(format!("{name} is not in {missing}"));
            continue;
        };
        let path = dist.join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if File::of(&bytes, old.lock.clone()) != *old {
            mistakes.push(format!("{name} is not the file that the manifest names"));
        }
        if old.lock != new.lock {
            mistakes.push(format!("{name} was built with other dependencies than Cargo.lock has"));
        }
        if committed.toolchain == current.toolchain && old.sha256 != new.sha256 {
            let (before, now) = (old.size, new.size);
            mistakes.push(format!(
                "{name} differs from a build by the same toolchain ({before} bytes, now {now})"
            ));
        }
    }
    Ok(mistakes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifest::Identity;

    fn manifest(rustc: &str, files: &[(&str, &[u8], &str)]) -> Manifest {
        let identity = Identity { rustc: rustc.to_owned(), ..Identity::default() };
        let files =
            files.iter().map(|(name, bytes, lock)| ((*name).to_owned(), File::of(bytes, (*lock).to_owned())));
        Manifest { toolchain: identity, files: files.collect() }
    }

    #[test]
    fn stale_plugins_are_named_and_bytes_compared_per_toolchain() {
        let dist = tempfile::tempdir().unwrap();
        fs::write(dist.path().join("a.wasm"), b"a").unwrap();
        let committed = manifest("1", &[("a.wasm", b"a", "lock")]);
        let check = |committed: &Manifest, current: &Manifest, expect: &[&str]| {
            assert_eq!(stale(dist.path(), committed, current).unwrap(), expect);
        };
        check(&committed, &manifest("1", &[("a.wasm", b"a", "lock")]), &[]);
        check(&committed, &manifest("2", &[("a.wasm", b"b", "lock")]), &[]);
        check(
            &committed,
            &manifest("1", &[("a.wasm", b"bc", "lock")]),
            &["a.wasm differs from a build by the same toolchain (1 bytes, now 2)"],
        );
        check(
            &committed,
            &manifest("2", &[("a.wasm", b"b", "other")]),
            &["a.wasm was built with other dependencies than Cargo.lock has"],
        );
        check(&committed, &manifest("1", &[]), &["a.wasm is not in the sources"]);
        check(
            &committed,
            &manifest("1", &[("a.wasm", b"a", "lock"), ("b.wasm", b"b", "lock")]),
            &["b.wasm is not in the manifest"],
        );
        let edited = manifest("1", &[("a.wasm", b"other", "lock")]);
        check(
            &edited,
            &manifest("1", &[("a.wasm", b"other", "lock")]),
            &["a.wasm is not the file that the manifest names"],
        );
    }

    #[test]
    fn default_policy_is_among_the_policies() {
        assert!(policies().unwrap().contains(&"kubernetes".to_owned()));
    }
}
