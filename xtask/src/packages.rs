//! The system packages that the gate and the plugin builds need.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// What the whole gate needs.
pub(crate) const GATE: &[&str] = &[
    "containerd",
    "runc",
    "containernetworking-plugins",
    "curl",
    "debootstrap",
    "iptables",
    "gcc",
    "g++",
    "libc6-dev",
    "protobuf-compiler",
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "lld",
    "qemu-system-x86",
    "busybox-static",
    "systemd",
];

/// A compiler for wasm32-unknown-unknown with the standard library's sources.
pub(crate) const WASM: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "lld"];

/// The oldest compiler that takes the workspace's `rust-version`. Debian's first one is older; its
/// security updates have this.
const COMPILER: (u32, u32) = (1, 95);

/// Installs what is missing or too old, on Debian and as root; elsewhere names it and fails.
pub(crate) fn ensure(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|package| !is_there(package)).copied().collect();
    if missing.is_empty() {
        println!("installed: {}", packages.join(" "));
        return Ok(());
    }
    if !Path::new("/etc/debian_version").exists() || !rustix::process::geteuid().is_root() {
        bail!("missing; install them (apt-get install as root on Debian 12): {}", missing.join(" "));
    }
    println!("installing {}", missing.join(" "));
    // A new machine has no lists, or old ones, which name old versions. Where they cannot be had,
    // those there are may do.
    if let Err(error) = process::run(apt().arg("update")) {
        println!("the package lists are not new: {error:#}");
    }
    install(&missing)?;
    match missing.iter().find(|package| !is_there(package)) {
        Some(package) => bail!("{package} is still missing or too old after apt-get install"),
        None => Ok(()),
    }
}

/// Whether it is installed, and as new as it must be.
fn is_there(package: &str) -> bool {
    let compiler = WASM.contains(&package) && package != "lld";
    version(package).is_some_and(|version| !compiler || release(&version).is_some_and(|it| it >= COMPILER))
}

/// `1.96.0+dfsg1-1~deb12u2` as 1 and 96.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The installed version of a package.
pub(crate) fn version(package: &str) -> Option<String> {
    let mut query = Command::new("dpkg-query");
    let answer = process::output(query.args(["-W", "-f=${db:Status-Status} ${Version}", package])).ok()?;
    answer.strip_prefix("installed ").map(str::to_owned)
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    process::run(apt().args(["install", "-y", "--no-install-recommends"]).args(packages))
        .context("apt-get install failed")
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be at work: on a new machine one often is.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    #[test]
    fn old_compiler_counts_as_missing() {
        assert_eq!(super::release("1.85.0+dfsg3-1~deb12u3"), Some((1, 85)));
        assert!(super::release("1.85.0+dfsg3-1~deb12u3") < Some(super::COMPILER));
        assert!(super::release("1.96.0+dfsg1-1~deb12u2") >= Some(super::COMPILER));
        assert_eq!(super::release("none"), None);
    }
}
