//! Newer containerds than this machine's: Debian's next releases, each a folder with that Debian in it.
//!
//! The folders are linked into `target-next`, where the suites look for them, and kept outside of the tree. One that is there is not
//! renewed: remove it from the cache for that.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::cache::{cached, link};
use crate::{packages, process, workspace};

/// The release after this machine's, which does not change any more: containerd 1.7.
pub(crate) const TRIXIE: &str = "trixie";
/// The one that changes daily: containerd 2. Not for the gate.
pub(crate) const SID: &str = "sid";

/// Makes the folder of a release where it is missing.
pub(crate) fn make(release: &str) -> anyhow::Result<()> {
    let folder = cached(&format!("containerd-{release}"), |folder| bootstrap(release, folder))?;
    let links = workspace::target_dir("next");
    fs::create_dir_all(&links).with_context(|| format!("cannot make {}", links.display()))?;
    link(&folder, &links.join(release))?;
    let versions = process::output(Command::new("chroot").arg(&folder).args(["containerd", "--version"]))?;
    println!("{release}: {versions}");
    Ok(())
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
    // CRI makes a pod's own of it, and starts none without.
    fs::write(folder.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")
        .context("cannot write etc/hosts")
}

/// Where this machine's apt gets this machine's release from; the next ones are there too.
fn mirror() -> anyhow::Result<String> {
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
    fn the_mirror_is_that_of_the_release_itself() {
        let system = "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let sources = "nodistro https://other.test/\nbookworm-security http://mirror.test/security/\n\
                       bookworm http://mirror.test/debian/\nbookworm http://second.test/\n";
        assert_eq!(mirror_of(system, sources).as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(mirror_of(system, "stable http://mirror.test/debian/\n"), None);
        assert_eq!(mirror_of("ID=other\n", sources), None);
    }
}
