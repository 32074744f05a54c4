//! Load on the machine's processors, beside what is measured.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A loop that checks now and then whether the process $1, the test, lives: a killed test leaves no
/// load. A process that is dead but not yet waited for has no program any more.
const BUSY: &str = "while [ -e /proc/$1/exe ]; do n=0; while [ $n -lt 10000 ]; do n=$((n + 1)); done; done";

/// Processes that do nothing but to run. Dropped, they are ended.
#[derive(Debug)]
pub struct Load {
    busy: Vec<Child>,
}

impl Load {
    /// Starts so many of them.
    pub fn start(processes: usize) -> Result<Self> {
        let mut load = Self { busy: Vec::with_capacity(processes) };
        for _ in 0..processes {
            let mut command = Command::new("sh");
            command.args(["-c", BUSY, "busy", &std::process::id().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            load.busy.push(command.spawn().context("starting a busy process")?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for busy in &mut self.busy {
            // Both fail only when it has ended already.
            drop(busy.kill());
            drop(busy.wait());
        }
    }
}
