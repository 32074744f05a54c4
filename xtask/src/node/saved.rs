//! The saved state of a Ready node: its memory, and the disk as it was then. One for each
//! containerd release.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::disk::Disk;
use super::key::Key;
use super::qmp::Qmp;
use super::record::Record;
use super::steps::Steps;
use super::versions::Versions;
use super::{qemu, ssh};
use crate::cache::cached;
use crate::process::EndsWithThis;
use crate::workspace;

const MEMORY: &str = "memory";

/// A saved state in the cache.
pub(super) struct Saved {
    folder: PathBuf,
}

impl Saved {
    /// The disk to which the memory belongs.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join(qemu::OVERLAY)
    }

    /// Loads the state into a machine that waits for it, and lets it run.
    pub(super) fn load(&self, node: &Record) -> anyhow::Result<()> {
        let loaded = Qmp::connect(&node.folder)?.load(&self.folder.join(MEMORY));
        loaded.with_context(|| {
            format!("cannot load a saved state; to have it made anew, remove {}", self.folder.display())
        })
    }
}

/// Boots a release's node, waits until it is Ready, and saves it.
pub(super) fn make(
    versions: &Versions,
    disk: &Disk,
    release: &str,
    steps: &mut Steps,
) -> anyhow::Result<Saved> {
    let machine = qemu::Machine { versions, disk, release };
    // Devices, memory and QEMU must be the same when it is loaded. Port and folder may differ.
    let key = Key::default()
        .text("disk", &disk.key)
        .text("arguments", &machine.arguments(0, Path::new("")).join(" "))
        .text("qemu", &qemu::version()?);
    let name = key.name(&format!("node-saved-{release}"));
    let folder = steps.run("saved state", || cached(&name, |folder| boot_and_save(&machine, folder)))?;
    Ok(Saved { folder })
}

fn boot_and_save(machine: &qemu::Machine<'_>, folder: &Path) -> anyhow::Result<()> {
    println!("booting the node of containerd {}; this needs minutes", machine.release);
    qemu::overlay(&machine.disk.image(), folder)?;
    let node = machine.start("saved", folder, false)?;
    let guard = EndsWithThis::new(node.pid()?);
    let saved = wait_and_save(&node);
    ssh::close(&node);
    // Also after an error: the machine is this function's own.
    node.end()?;
    drop(guard);
    saved?;
    // Sockets, pid and log were the machine's.
    let kept = |path: &PathBuf| [qemu::OVERLAY, MEMORY].iter().any(|name| path.ends_with(name));
    for path in workspace::entries(folder)?.iter().filter(|path| !kept(path)) {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn wait_and_save(node: &Record) -> anyhow::Result<()> {
    ssh::wait_for_login(node, ssh::BOOT)?;
    println!("login after {} s", node.uptime().as_secs());
    ssh::wait_for_ready(node, ssh::BOOT)?;
    println!("Ready after {} s", node.uptime().as_secs());
    // What was written goes to the disk: the memory that is saved is then mostly the programs'.
    ssh::output(node, &["sync"])?;
    ssh::close(node);
    let memory = node.folder.join(MEMORY);
    Qmp::connect(&node.folder)?.save(&memory)?;
    let size = fs::metadata(&memory).with_context(|| format!("cannot read {}", memory.display()))?.len();
    println!("saved: {} MiB", size >> 20);
    Ok(())
}
