//! A node with systemd and cgroup v2 only: a virtual machine of `cargo xtask node`, with containerd
//! and without Kubernetes.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::binary;
use crate::report::print;

/// A containerd release other than the newest; the host's suites know it too.
const RELEASE_VARIABLE: &str = "CORONER_TEST_CONTAINERD";

/// A node of its own for one test; it is ended when dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
}

impl Node {
    /// Resumes the saved node. `name` is unique within a test process.
    pub fn up(name: &str) -> Result<Self> {
        end_left_over(name)?;
        let node = Self { name: format!("{name}-{}", std::process::id()) };
        let mut up = node.xtask("up");
        if let Some(release) = std::env::var_os(RELEASE_VARIABLE) {
            up.arg("--containerd").arg(release);
        }
        succeed(up.arg("--without-kubernetes"))?;
        Ok(node)
    }

    /// Runs a line in the node's shell, as root.
    pub fn output(&self, line: &str) -> Result<Output> {
        let mut ssh = self.xtask("ssh");
        ssh.args(["--", line]).stdin(Stdio::null());
        ssh.output().with_context(|| format!("starting {ssh:?}"))
    }

    /// The same; fails unless the line's exit code is 0, and answers what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(line)?;
        printed(line, &output)
    }

    /// Copies a file into the node, as a program.
    pub fn copy(&self, file: &Path, to: &str) -> Result<()> {
        let input = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        let mut ssh = self.xtask("ssh");
        ssh.args(["--", &format!("cat > {to} && chmod 755 {to}")]).stdin(input);
        succeed(&mut ssh)
    }

    /// Reboots it, and waits until containerd answers again.
    pub fn reboot(&self) -> Result<()> {
        succeed(&mut self.xtask("reboot"))
    }

    /// `cargo xtask node COMMAND --name NAME`.
    fn xtask(&self, command: &str) -> Command {
        let mut xtask = Command::new(env!("CARGO"));
        xtask.current_dir(env!("CARGO_MANIFEST_DIR"));
        xtask.args(["xtask", "node", command, "--name", &self.name]);
        xtask
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = succeed(&mut self.xtask("down")) {
            print(format_args!("{error:#}"));
        }
    }
}

/// Ends the nodes of this name that killed test processes have left.
fn end_left_over(name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    for entry in std::fs::read_dir(binary::target("node")?).into_iter().flatten().flatten() {
        let folder = entry.file_name();
        let Some(pid) = folder.to_str().and_then(|folder| folder.strip_prefix(&prefix)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            drop(Node { name: format!("{prefix}{pid}") });
        }
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    printed(&format!("{command:?}"), &output).map(drop)
}

fn printed(command: &str, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command}: {}\n{out}{errors}", output.status);
    }
    Ok(out)
}
