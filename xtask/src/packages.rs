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

/// Installs what is missing, on Debian and as root; elsewhere names it and fails.
pub(crate) fn ensure(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|package| version(package).is_none()).copied().collect();
    if missing.is_empty() {
        println!("installed: {}", packages.join(" "));
        return Ok(());
    }
    if !Path::new("/etc/debian_version").exists() || !rustix::process::geteuid().is_root() {
        bail!("missing; install them (apt-get install as root on Debian 12): {}", missing.join(" "));
    }
    println!("installing {}", missing.join(" "));
    // The lists may be fresh enough already; an update costs seconds, and is needed once on a new machine.
    if install(&missing).is_err() {
        process::run(apt().arg("update"))?;
        install(&missing)?;
    }
    match missing.iter().find(|package| version(package).is_none()) {
        Some(package) => bail!("{package} is still missing after apt-get install"),
        None => Ok(()),
    }
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
