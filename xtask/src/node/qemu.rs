//! QEMU: its arguments, its overlay, its start.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::disk::Disk;
use super::record::Record;
use super::versions::Versions;
use crate::process;

const PROGRAM: &str = "qemu-system-x86_64";
pub(super) const OVERLAY: &str = "disk.qcow2";
/// Relative to a node's folder, where QEMU is started: the path of a socket must be short.
pub(super) const QMP: &str = "qmp";
const PID: &str = "pid";
/// Panics end the guest, and with it QEMU (`-no-reboot`); names of interfaces are the kernel's own.
/// Without `no_timer_check` the kernel panics if the emulated timer is late at its start, on a busy
/// host.
const KERNEL: &str = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 \
                      nowatchdog no_timer_check panic=1 systemd.show_status=0";

/// The virtual machine of a node. A saved state can only be loaded into the same devices.
pub(super) struct Machine<'a> {
    pub(super) versions: &'a Versions,
    pub(super) disk: &'a Disk,
    pub(super) release: &'a str,
}

impl Machine<'_> {
    /// Starts it in `folder`, where its overlay is. With `waits` it does not run before a state was
    /// loaded.
    pub(super) fn start(&self, name: &str, folder: &Path, waits: bool) -> anyhow::Result<Record> {
        let port = free_port()?;
        let mut command = Command::new(PROGRAM);
        command.current_dir(folder).args(self.arguments(port, folder)).args(["-daemonize", "-pidfile", PID]);
        if waits {
            command.args(["-incoming", "defer"]);
        }
        process::output(&mut command).context("QEMU did not start")?;
        let path = folder.join(PID);
        let pid = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let pid = pid.trim().parse().with_context(|| format!("no pid in {}", path.display()))?;
        let key = self.disk.ssh_key();
        Record::new(name, folder, pid, port, key, self.release, !waits)
    }

    /// The port and the folder are a node's own; all others are what a state depends on.
    pub(super) fn arguments(&self, port: u16, folder: &Path) -> Vec<String> {
        let machine = &self.versions.machine;
        let forward = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22");
        // In full: QEMU opens it once more at the end of a migration, from another working folder.
        // A comma would end the option, two are one.
        let overlay = folder.join(OVERLAY).display().to_string().replace(',', ",,");
        let drive = format!("file={overlay},if=none,id=disk,cache=unsafe,discard=unmap");
        let arguments = [
            // Without KVM: whether a machine has it decides on no result.
            ("-M", "q35".to_owned()),
            ("-accel", "tcg,thread=multi,tb-size=1024".to_owned()),
            ("-cpu", "max".to_owned()),
            ("-smp", machine.cpus.to_string()),
            ("-m", machine.memory_mib.to_string()),
            ("-display", "none".to_owned()),
            ("-drive", drive),
            ("-device", "virtio-blk-pci,drive=disk".to_owned()),
            ("-netdev", forward),
            ("-device", "virtio-net-pci,netdev=net".to_owned()),
            ("-device", "virtio-rng-pci".to_owned()),
            ("-serial", "file:serial.log".to_owned()),
            ("-qmp", format!("unix:{QMP},server=on,wait=off")),
            ("-kernel", self.disk.kernel().display().to_string()),
            ("-initrd", self.disk.initrd().display().to_string()),
            ("-append", format!("{KERNEL} coroner.containerd={}", self.release)),
        ];
        let words = arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        ["-nodefaults", "-no-reboot"].map(str::to_owned).into_iter().chain(words).collect()
    }
}

/// A disk in `folder` that reads what is not written yet from `backing`, which does not change.
pub(super) fn overlay(backing: &Path, folder: &Path) -> anyhow::Result<()> {
    let format = if backing.ends_with(OVERLAY) { "qcow2" } else { "raw" };
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(backing).arg(folder.join(OVERLAY));
    process::output(&mut create).map(drop)
}

/// The first line of `--version`: another QEMU cannot load a state.
pub(super) fn version() -> anyhow::Result<String> {
    let version = process::output(Command::new(PROGRAM).arg("--version"))?;
    version.lines().next().map(str::to_owned).context("QEMU printed no version")
}

/// A port of the loopback address that is free now.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr().context("a listener has an address")?.port())
}

/// Fails once QEMU has ended, with where its logs are.
pub(super) fn check_running(node: &Record) -> anyhow::Result<()> {
    if !node.is_running() {
        bail!("QEMU (pid {}) ended; the serial log is in {}", node.pid, node.folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_the_port_the_release_and_no_other_network() {
        let versions = Versions::read().unwrap();
        let disk = Disk::at(Path::new("/cache/disk"));
        let machine = Machine { versions: &versions, disk: &disk, release: "2.3.7" };
        let arguments = machine.arguments(4022, Path::new("/a,b")).join(" ");
        assert!(arguments.contains("restrict=on,hostfwd=tcp:127.0.0.1:4022-:22"), "{arguments}");
        assert!(arguments.ends_with("coroner.containerd=2.3.7"), "{arguments}");
        assert!(arguments.contains("-kernel /cache/disk/vmlinuz"), "{arguments}");
        assert!(arguments.contains("-m 4096"), "{arguments}");
        assert!(arguments.contains("file=/a,,b/disk.qcow2,if=none"), "{arguments}");
    }

    #[test]
    fn devices_do_not_depend_on_the_port() {
        let versions = Versions::read().unwrap();
        let disk = Disk::at(Path::new("/cache/disk"));
        let machine = Machine { versions: &versions, disk: &disk, release: "2.4.2" };
        let arguments = |port: u16| machine.arguments(port, Path::new("/node")).join(" ");
        let without = |port: u16| arguments(port).replace(&port.to_string(), "PORT");
        assert_eq!(without(40001), without(50002));
    }
}
