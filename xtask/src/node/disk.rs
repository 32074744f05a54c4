//! The disk that a node boots from: root, programs, configuration and images, with its kernel, its
//! initrd and the key to log in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::key::Key;
use super::programs::{self, Programs};
use super::steps::Steps;
use super::versions::{Content, Versions};
use super::{root, sources};
use crate::cache::cached;
use crate::{packages, process};

/// Scripts and sources that a disk is made with; changes of others do not make it anew.
const SCRIPTS: &[&str] = &["image.sh", "init", "initrd.sh", "pause.c", "setup.sh"];

/// A finished disk in the cache.
pub(super) struct Disk {
    folder: PathBuf,
    pub(super) key: String,
}

impl Disk {
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("base.img")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    pub(super) fn ssh_key(&self) -> PathBuf {
        self.folder.join("key")
    }

    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), key: "node-disk-test".to_owned() }
    }
}

/// Makes what is missing, each part as a step.
pub(super) fn make(versions: &Versions, content: Content<'_>, steps: &mut Steps) -> anyhow::Result<Disk> {
    root::check_rights(versions)?;
    steps.run("packages", || packages::ensure(root::PACKAGES))?;
    let (programs, mut key) = programs::make(versions, content, steps, Key::default())?;
    key = key.text("root", &root::key(versions)?).text("gib", &versions.machine.disk_gib.to_string());
    for script in SCRIPTS {
        key = key.file(&sources().join(script))?;
    }
    let key = key.folder(&sources().join("files"))?.name("node-disk");
    let root = steps.run("root file system", || root::make(versions))?;
    let folder = steps.run("disk", || {
        cached(&key, |folder| assemble(&root, &programs, versions.machine.disk_gib, folder))
    })?;
    Ok(Disk { folder, key })
}

/// Copies everything into one tree, and makes an ext4 image of it without mounting it.
fn assemble(base: &Path, programs: &[Programs], gib: u32, folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("root");
    process::run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(base).arg(&root))?;
    // Without the owner: the files of this tree belong to a person, in a node they are root's.
    copy(&sources().join("files"), &root)?;
    for programs in programs {
        copy(&programs.folder, &root.join(&programs.place))?;
    }
    let node = root.join("opt/node");
    fs::create_dir_all(&node).with_context(|| format!("cannot make {}", node.display()))?;
    for script in ["image.sh", "setup.sh"] {
        fs::copy(sources().join(script), node.join(script))
            .with_context(|| format!("cannot copy {script}"))?;
    }
    let mut compile = Command::new("gcc");
    compile.args(["-O1", "-static", "-s", "-o"]).arg(node.join("pause")).arg(sources().join("pause.c"));
    process::run(&mut compile)?;
    login(folder, &root)?;
    process::run(Command::new("chroot").arg(&root).arg("/opt/node/setup.sh"))?;
    process::run(Command::new(sources().join("initrd.sh")).arg(&root).arg(folder))?;
    let mut image = Command::new("mke2fs");
    // Without a journal: a node's disk is thrown away, and never repaired.
    image.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]).arg(&root);
    process::run(image.arg(folder.join("base.img")).arg(format!("{gib}G")))?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut copy = Command::new("cp");
    copy.args(["-rT", "--preserve=mode"]).arg(from).arg(to);
    process::run(&mut copy)
}

/// A key for root of this disk alone.
fn login(folder: &Path, root: &Path) -> anyhow::Result<()> {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "node", "-f"]).arg(folder.join("key"));
    process::run(&mut keygen)?;
    let keys = root.join("root/.ssh");
    fs::create_dir_all(&keys).with_context(|| format!("cannot make {}", keys.display()))?;
    fs::copy(folder.join("key.pub"), keys.join("authorized_keys")).context("cannot copy key.pub")?;
    Ok(())
}
