//! Newer containerds than this machine's: Debian trixie's packages, and upstream's releases as Go
//! modules.
//!
//! Each one is a folder in the cache, outside of the tree, under its version's name. It is linked
//! into `target-next`, where the suites find it. An existing folder is not renewed: remove it from
//! the cache for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cache::{cached, link};
use crate::{packages, process, workspace};

/// The Debian release after this machine's, which does not change any more: containerd 1.7.
pub(crate) const TRIXIE: &str = "trixie";
/// The newest containerd with a folder in [`MODULES`]. The gate runs it.
pub(crate) const NEWEST: &str = "2.4.2";

/// One folder per version, with the go.mod and go.sum that it is built from. A folder of its own
/// per version keeps the dependencies at what that release was tested with.
const MODULES: &str = "tests/programs/containerd";
const VERSION: &str = "github.com/containerd/containerd/v2/version.Version";

/// Gets or builds the containerd of this name where it is missing.
pub(crate) fn make(name: &str) -> anyhow::Result<()> {
    let folder = match (name, module(name)) {
        (TRIXIE, _) => cached("containerd-trixie", |folder| bootstrap(name, folder))?,
        (_, Some(module)) => upstream(name, &module)?,
        (_, None) => bail!("no containerd {name}; there are: {TRIXIE}, {}", versions()?.join(", ")),
    };
    let links = workspace::target_dir("next");
    fs::create_dir_all(&links).with_context(|| format!("cannot make {}", links.display()))?;
    link(&folder, &links.join(name))?;
    let mut command = match name {
        TRIXIE => Command::new("chroot"),
        _ => Command::new(folder.join("containerd")),
    };
    if name == TRIXIE {
        command.arg(&folder).arg("containerd");
    }
    println!("{name}: {}", process::output(command.arg("--version"))?);
    Ok(())
}

/// The programs of upstream's release, built from the go.mod in `module`.
pub(crate) fn upstream(version: &str, module: &Path) -> anyhow::Result<PathBuf> {
    cached(&format!("containerd-{version}"), |folder| build(version, module, folder))
}

/// The folder with the go.mod of a version.
pub(crate) fn module(version: &str) -> Option<PathBuf> {
    let folder = workspace::root().join(MODULES).join(version);
    folder.join("go.mod").is_file().then_some(folder)
}

/// The versions that can be built.
fn versions() -> anyhow::Result<Vec<String>> {
    let folders = workspace::entries(&workspace::root().join(MODULES))?;
    let names = folders.iter().filter_map(|folder| folder.file_name());
    Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
}

/// Builds containerd, its shim of runc and ctr: the `tool` lines of the module. go.sum holds the
/// checksums of all sources, and Go refuses others.
fn build(version: &str, module: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut build = Command::new("go");
    build
        .current_dir(module)
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &format!("-s -w -X {VERSION}={version}")])
        .arg("-o")
        // With a slash at its end it is a folder, for several programs.
        .arg(folder.join(""))
        .arg("tool");
    process::run(&mut build)
        .with_context(|| format!("building containerd {version} needs the Go of {}/go.mod", module.display()))
}

fn bootstrap(release: &str, folder: &Path) -> anyhow::Result<()> {
    packages::ensure(&["debootstrap"])?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--force-check-gpg", "--variant=minbase", "--include=containerd,runc", release]);
    process::run(debootstrap.arg(folder).arg(mirror()?))?;
    // Half of it: packages that are installed already.
    let archives = folder.join("var/cache/apt/archives");
    for archive in workspace::entries(&archives)? {
        if archive.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        }
    }
    // CRI copies it into a pod, and starts no pod without it.
    fs::write(folder.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")
        .context("cannot write etc/hosts")
}

/// The mirror that this machine's apt uses for its own release; it has the next releases too.
pub(crate) fn mirror() -> anyhow::Result<String> {
    let system = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let sources = process::output(&mut list)?;
    let found = mirror_of(&system, &sources);
    found.with_context(|| format!("no source of apt is of this machine's release: {sources}"))
}

fn mirror_of(system: &str, sources: &str) -> Option<String> {
    let release = system.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let mut sources = sources.lines().filter_map(|line| line.split_once(' '));
    Some(sources.find(|(of, _)| *of == release)?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_that_of_this_machines_release() {
        let system = "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let sources = "nodistro https://other.test/\nbookworm-security http://mirror.test/security/\n\
                       bookworm http://mirror.test/debian/\nbookworm http://second.test/\n";
        assert_eq!(mirror_of(system, sources).as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(mirror_of(system, "stable http://mirror.test/debian/\n"), None);
        assert_eq!(mirror_of("ID=other\n", sources), None);
    }

    #[test]
    fn every_module_requires_the_version_of_its_folder() {
        let versions = versions().unwrap();
        assert!(versions.contains(&NEWEST.to_owned()), "{versions:?}");
        for version in versions {
            let text = fs::read_to_string(module(&version).unwrap().join("go.mod")).unwrap();
            assert!(text.contains(&format!("github.com/containerd/containerd/v2 v{version}")), "{version}");
        }
    }
}
