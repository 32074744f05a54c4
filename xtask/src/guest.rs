//! What a guest is made of: a kernel, the vsock daemon of its virtual machine, and the agent as it
//! is built for guests.
//!
//! All of it lies in one folder, `parts` in the target folder `target-guest`, where the suite reads
//! it. What was downloaded or installed is kept outside of the tree by its version, and made again
//! when it is absent.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::cache::{cached, link};
use crate::{process, workspace};

/// The package that always names Debian's newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Connects a guest's virtio-vsock with a unix socket of the host, as Firecracker and Cloud
/// Hypervisor do.
const VSOCK: (&str, &str) = ("vhost-device-vsock", "0.3.0");
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Not relocatable: relocations would be written into pages of its own at each start, 100 KiB of
/// them.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Makes what is missing, and answers the folder.
pub(crate) fn parts() -> anyhow::Result<PathBuf> {
    let parts = workspace::target_dir("guest").join("parts");
    fs::create_dir_all(&parts).with_context(|| format!("cannot make {}", parts.display()))?;
    link(&kernel()?, &parts.join("kernel"))?;
    link(&vsock()?, &parts.join(VSOCK.0))?;
    link(&agent()?, &parts.join("coroner-agent"))?;
    Ok(parts)
}

/// The agent as it goes into a guest: static, and small.
pub(crate) fn agent() -> anyhow::Result<PathBuf> {
    let target = workspace::target_dir("guest");
    let mut build = workspace::cargo();
    build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", FLAGS).args([
        "build",
        "--profile",
        "guest",
        "--locked",
        "--target",
        TARGET,
        "--package",
        "coroner-agent",
    ]);
    process::run(&mut build)?;
    let built = target.join(TARGET).join("guest/coroner-agent");
    let size = fs::metadata(&built).with_context(|| format!("cannot read {}", built.display()))?.len();
    println!("coroner-agent, static: {} KiB", size / 1024);
    Ok(built)
}

/// The kernel package, unpacked and never installed.
fn kernel() -> anyhow::Result<PathBuf> {
    let depends = match process::output(Command::new("apt-cache").args(["depends", KERNEL])) {
        Ok(depends) if depends.contains("Depends: ") => depends,
        _ => {
            process::run(Command::new("apt-get").args(["-q", "update"]))?;
            process::output(Command::new("apt-cache").args(["depends", KERNEL]))?
        }
    };
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("no package {KERNEL}: {depends}"))?;
    cached(package, |folder| {
        if process::run(Command::new("apt-get").current_dir(folder).args(["-q", "download", package]))
            .is_err()
        {
            process::run(Command::new("apt-get").args(["-q", "update"]))?;
            process::run(Command::new("apt-get").current_dir(folder).args(["-q", "download", package]))?;
        }
        let deb = workspace::entries(folder)?.pop().context("apt-get download left no file")?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(folder))?;
        Ok(fs::remove_file(deb)?)
    })
}

fn vsock() -> anyhow::Result<PathBuf> {
    let (name, version) = VSOCK;
    let folder = cached(&format!("{name}-{version}"), |folder| {
        let mut install = workspace::cargo();
        install.args(["install", name, "--version", version, "--locked", "--root"]).arg(folder);
        process::run(&mut install)
    })?;
    Ok(folder.join("bin").join(name))
}
