//! The commands, as they are typed.

use std::fs;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use super::qmp::Qmp;
use super::record::Record;
use super::saved::Saved;
use super::steps::Steps;
use super::versions::{Content, Versions};
use super::{disk, qemu, record, saved, ssh, status};
use crate::process::EndsWithThis;

const BUILD: &str = "\
Examples:
  cargo xtask node build                       the default containerd release
  cargo xtask node build --containerd 2.3.7    another one's saved state too
  cargo xtask node build --without-kubernetes  containerd alone, in minutes";
const UP: &str = "\
Examples:
  cargo xtask node up
  cargo xtask node up --name old --containerd 2.1.9
  cargo xtask node up --fresh                  boots instead of resuming";
const SSH: &str = "\
One word is a line for the node's shell; several words are one command, each word as it is.

Examples:
  cargo xtask node ssh
  cargo xtask node ssh -- kubectl get nodes
  cargo xtask node ssh -- 'dmesg | tail'
  cargo xtask node ssh -- sh -s 10 < tests/programs/node/oom-count.sh";
const REBOOT: &str = "\
Examples:
  cargo xtask node reboot
  cargo xtask node reboot --name old";
const STATUS: &str = "\
Examples:
  cargo xtask node status
  cargo xtask node status --json | jq -r '.[].port'";
const DOWN: &str = "\
Examples:
  cargo xtask node down
  cargo xtask node down --name old
  cargo xtask node down --all";
const NAME: &str = "main";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes or finds everything in the cache, boots once, and saves the Ready state
    #[command(after_help = BUILD)]
    Build {
        /// A release of tests/programs/node/versions.toml
        #[arg(long, value_name = "VERSION")]
        containerd: Option<String>,
        /// A node of its own kind with containerd alone: no kubelet, API server and CRI tools
        #[arg(long)]
        without_kubernetes: bool,
    },
    /// Resumes a node from its saved state, and builds what is missing
    #[command(after_help = UP)]
    Up {
        /// Name of the node; several may be up
        #[arg(long, default_value = NAME)]
        name: String,
        /// A release of tests/programs/node/versions.toml
        #[arg(long, value_name = "VERSION")]
        containerd: Option<String>,
        /// A node of its own kind with containerd alone: no kubelet, API server and CRI tools
        #[arg(long)]
        without_kubernetes: bool,
        /// Boot from the disk instead of resuming the saved state
        #[arg(long)]
        fresh: bool,
    },
    /// Runs a command in a node, or a shell; the exit code is the command's
    #[command(after_help = SSH)]
    Ssh {
        /// Name of the node
        #[arg(long, default_value = NAME)]
        name: String,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Reboots a node as its operator does, and waits until it is Ready again
    #[command(after_help = REBOOT)]
    Reboot {
        /// Name of the node
        #[arg(long, default_value = NAME)]
        name: String,
    },
    /// Prints the nodes and whether they are Ready
    #[command(after_help = STATUS)]
    Status {
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Ends a node and removes its overlay
    #[command(after_help = DOWN)]
    Down {
        /// Name of the node
        #[arg(long, default_value = NAME)]
        name: String,
        /// End all nodes
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Build { containerd, without_kubernetes } => {
            build(containerd.as_deref(), without_kubernetes)?;
            let option = if without_kubernetes { " --without-kubernetes" } else { "" };
            println!("built; to start a node: cargo xtask node up{option}");
            Ok(())
        }
        Command::Up { name, containerd, without_kubernetes, fresh } => {
            up(&name, containerd.as_deref(), without_kubernetes, fresh)
        }
        Command::Ssh { name, command } => ssh::replace_this(&running(&name)?, &command),
        Command::Reboot { name } => reboot(&running(&name)?),
        Command::Status { json } => status::print(json),
        Command::Down { all: true, .. } => down_all(),
        Command::Down { name, all: false } => match record::read(&name)? {
            Some(node) => down(&node),
            None => bail!("{}", unknown(&name)?),
        },
    }
}

/// Makes everything up to the saved state.
pub(crate) fn build(containerd: Option<&str>, without_kubernetes: bool) -> anyhow::Result<()> {
    let versions = Versions::read()?;
    let release = versions.release(containerd)?;
    let mut steps = Steps::default();
    let disk = disk::make(&versions, Content::new(without_kubernetes, release), &mut steps)?;
    saved::make(&versions, &disk, release, &mut steps)?;
    steps.print();
    Ok(())
}

fn up(name: &str, containerd: Option<&str>, without_kubernetes: bool, fresh: bool) -> anyhow::Result<()> {
    record::check_name(name)?;
    if let Some(node) = record::read(name)? {
        if node.is_running() {
            bail!("node {name} is up already (pid {}): cargo xtask node down --name {name}", node.pid);
        }
        println!("node {name} has ended; its folder is made anew");
    }
    let versions = Versions::read()?;
    let release = versions.release(containerd)?;
    let content = Content::new(without_kubernetes, release);
    let mut steps = Steps::default();
    let disk = disk::make(&versions, content, &mut steps)?;
    let state = match fresh {
        true => None,
        false => Some(saved::make(&versions, &disk, release, &mut steps)?),
    };

    let start = Instant::now();
    let folder = record::folder(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    qemu::overlay(&state.as_ref().map_or_else(|| disk.image(), Saved::disk), &folder)?;
    let machine = qemu::Machine { versions: &versions, disk: &disk, release };
    let node = machine.start(name, &folder, state.is_some())?;
    let guard = EndsWithThis::new(node.pid()?);
    node.write()?;
    if let Err(error) = ready(&node, state.as_ref()) {
        node.end()?;
        return Err(
            error.context(format!("node {name} did not become Ready; its logs: {}", folder.display()))
        );
    }
    drop(guard);
    let how = if fresh { "booted" } else { "resumed" };
    println!("node {name} is Ready, {how} in {:.0} s", start.elapsed().as_secs_f64());
    println!("  containerd {release}, pid {}, {}", node.pid, ssh::shown(&node));
    let command = if content.is_whole() { "kubectl get nodes" } else { "ctr version" };
    println!("  a command:    cargo xtask node ssh --name {name} -- {command}");
    println!("  end it with:  cargo xtask node down --name {name}");
    Ok(())
}

/// Waits until the node is Ready, on the host's time.
fn ready(node: &Record, state: Option<&Saved>) -> anyhow::Result<()> {
    match state {
        Some(state) => {
            state.load(node)?;
            ssh::wait_for_login(node, ssh::RESUME)?;
            ssh::set_clock(node)?;
            ssh::wait_for_ready(node, ssh::RESUME)
        }
        None => {
            ssh::wait_for_login(node, ssh::BOOT)?;
            ssh::wait_for_ready(node, ssh::BOOT)
        }
    }
}

fn reboot(node: &Record) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut qemu = Qmp::connect(&node.folder)?;
    let mut set = |action: &str| qemu.execute("set-action", json!({ "reboot": action }));
    set("reset")?;
    let booted = restarted(node);
    // As it was started: a guest that panics ends QEMU, and does not boot again and again.
    set("shutdown")?;
    booted?;
    ssh::wait_for_ready(node, ssh::BOOT)?;
    println!("node {} is Ready, rebooted in {:.0} s", node.name, start.elapsed().as_secs_f64());
    Ok(())
}

/// Has the node reboot, and waits for the next boot.
fn restarted(node: &Record) -> anyhow::Result<()> {
    let boot = ssh::boot_id(node)?;
    // ssh would lose its connection while the command runs.
    ssh::output(node, &["systemd-run", "--quiet", "--on-active=1", "systemctl", "reboot"])?;
    ssh::close(node);
    ssh::wait_for_boot(node, &boot)
}

fn down(node: &Record) -> anyhow::Result<()> {
    ssh::close(node);
    let ended = node.end()?;
    let folder = record::folder(&node.name);
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let how = if ended { "ended" } else { "had ended already" };
    println!("node {}: QEMU (pid {}) {how}; overlay removed", node.name, node.pid);
    Ok(())
}

fn down_all() -> anyhow::Result<()> {
    let nodes = record::all()?;
    if nodes.is_empty() {
        println!("no node is up");
    }
    nodes.iter().try_for_each(down)
}

fn running(name: &str) -> anyhow::Result<Record> {
    match record::read(name)? {
        Some(node) if node.is_running() => Ok(node),
        Some(_) => bail!("node {name} has ended: cargo xtask node up --name {name} starts it anew"),
        None => bail!("{}", unknown(name)?),
    }
}

fn unknown(name: &str) -> anyhow::Result<String> {
    let names: Vec<String> = record::all()?.into_iter().map(|node| node.name).collect();
    let there = match names.as_slice() {
        [] => "there are none".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    };
    Ok(format!("node {name} is not up ({there}); to start it: cargo xtask node up --name {name}"))
}
