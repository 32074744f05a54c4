//! The root file system: Debian's packages, and the kernel unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::key::Key;
use super::versions::{Versions, changed};
use crate::cache::{cached, is_cached};
use crate::{next, process};

/// What the steps from here to the saved state need on this machine.
pub(super) const PACKAGES: &[&str] = &[
    "debootstrap",
    "cpio",
    "e2fsprogs",
    "gcc",
    "libc6-dev",
    "openssh-client",
    "qemu-system-x86",
    "qemu-utils",
    "xz-utils",
];

/// The name in the cache.
pub(super) fn key(versions: &Versions) -> anyhow::Result<String> {
    let debian = &versions.debian;
    let mut key = Key::default().text("kernel", &debian.kernel).text("packages", &debian.packages.join(" "));
    // A measured version that was raised stands for packages to be installed anew.
    for (package, version) in &debian.measured {
        key = key.text(package, version);
    }
    Ok(key.file(&super::sources().join("root.sh"))?.name(&format!("node-root-{}", debian.release)))
}

/// Fails before what needs minutes, if the root file system has to be made and cannot be.
pub(super) fn check_rights(versions: &Versions) -> anyhow::Result<()> {
    if !is_cached(&key(versions)?)? && !rustix::process::geteuid().is_root() {
        bail!("debootstrap and chroot need root: run `cargo xtask node build` as root");
    }
    Ok(())
}

pub(super) fn make(versions: &Versions) -> anyhow::Result<PathBuf> {
    let folder = cached(&key(versions)?, |folder| bootstrap(versions, folder))?;
    let path = folder.join("etc/node-packages");
    let installed = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for line in changed(&versions.debian.measured, &installed) {
        println!("note: {line}");
    }
    Ok(folder)
}

fn bootstrap(versions: &Versions, folder: &Path) -> anyhow::Result<()> {
    let debian = &versions.debian;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--force-check-gpg", "--variant=minbase", "--include"]);
    debootstrap.arg(debian.packages.join(",")).arg(&debian.release).arg(folder).arg(next::mirror()?);
    process::run(&mut debootstrap).context("debootstrap failed; its log is debootstrap/debootstrap.log")?;
    let script = folder.join("tmp/root.sh");
    fs::copy(super::sources().join("root.sh"), &script).context("cannot copy root.sh")?;
    process::run(Command::new("chroot").arg(folder).args(["/tmp/root.sh", &debian.kernel]))?;
    fs::remove_file(&script).with_context(|| format!("cannot remove {}", script.display()))
}
