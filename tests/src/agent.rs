//! The real `coroner-agent`, on a socket of its own, watching one cgroup.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::binary;
use crate::process::{Process, check_clean};
use crate::scratch::Scratch;
use crate::wait::until;

const SOCKET: &str = "agent.sock";
const READY: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);

/// A running agent. Dropped, it is ended.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    scratch: Scratch,
    root: String,
    more: Vec<String>,
    traced: bool,
}

impl Agent {
    /// Starts it on the containers below the cgroup `root` and waits until it is ready.
    pub async fn start(root: &str) -> Result<Self> {
        Self::start_with(root, &[]).await
    }

    /// The same with more arguments.
    pub async fn start_with(root: &str, more: &[&str]) -> Result<Self> {
        let more = more.iter().map(|&it| it.to_owned()).collect();
        Self { process: None, scratch: Scratch::new()?, root: root.to_owned(), more, traced: false }
            .started()
            .await
    }

    /// The same with tracefs, which only this agent sees: systemd mounts it on a node, and a
    /// container may have none.
    pub async fn start_traced(root: &str) -> Result<Self> {
        Self { process: None, scratch: Scratch::new()?, root: root.to_owned(), more: vec![], traced: true }
            .started()
            .await
    }

    async fn started(mut self) -> Result<Self> {
        self.start_again().await?;
        Ok(self)
    }

    /// Starts it again after `stop`, on the same socket.
    pub async fn start_again(&mut self) -> Result<()> {
        let agent = binary::find("coroner-agent", "coroner-agent")?;
        let mut command = Command::new(if self.traced { Path::new("unshare") } else { &agent });
        if self.traced {
            let script = "mount -t tracefs none /sys/kernel/tracing && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(&agent);
        }
        command.args(["run", "--listen", &self.address(), "--root", &self.root]).args(&self.more);
        let process = Process::start("coroner-agent", &mut command, &self.scratch.path("agent.log"))?;
        let process = self.process.insert(process);
        let socket = self.scratch.path(SOCKET);
        // It listens once everything that is there is watched.
        until("the agent to listen", READY, async || {
            process.check_running()?;
            Ok(UnixStream::connect(&socket).ok())
        })
        .await?;
        Ok(())
    }

    /// Ends it by SIGTERM; fails unless it ends cleanly.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        check_clean("coroner-agent", process.terminate(STOP).await?)
    }

    /// Where it listens, as the router's configuration wants it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.scratch.path(SOCKET).display())
    }
}
