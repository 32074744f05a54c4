//! A child process with its log in a file: ended when dropped, its log shown when the test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until;

/// Lines of a log that a failed test shows: the last ones hold the reason.
const SHOWN: usize = 40;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this process's own lines begin in a log that outlives it.
    log_start: usize,
}

impl Process {
    /// Starts `command`, its output appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::with_input(name, command, Stdio::null(), log)
    }

    /// The same with this as its standard input.
    pub fn with_input(name: &str, command: &mut Command, input: Stdio, log: &Path) -> Result<Self> {
        let log_start = fs::read(log).map_or(0, |old| old.len());
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(input)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}: is {:?} installed?", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), log_start })
    }

    /// Fails with the exit status when the process no longer runs.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early: {status}\n{}", self.name, self.tail()),
        }
    }

    /// Waits until this process has logged a line with the word `ready` in it.
    pub async fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let what = format!("{} to log `ready`", self.name);
        let ready = until(&what, deadline, async || {
            self.check_running()?;
            let log = fs::read(&self.log)?;
            let own = String::from_utf8_lossy(log.get(self.log_start..).unwrap_or_default());
            let word = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()) == "ready";
            Ok(own.split_whitespace().any(word).then_some(()))
        });
        ready.await.with_context(|| self.tail())
    }

    /// Terminates it by SIGTERM and waits for its end, at most for `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let what = format!("{} to end after SIGTERM", self.name);
        until(&what, deadline, async || Ok(self.child.try_wait()?)).await
    }

    /// Ends it by SIGKILL and waits for that.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into()?).context("a child has a pid")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    fn tail(&self) -> String {
        let log = fs::read(&self.log)
            .map_or_else(|error| error.to_string(), |log| String::from_utf8_lossy(&log).into_owned());
        let lines: Vec<_> = log.lines().collect();
        let shown = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
        format!("the end of {}'s log:\n{}", self.name, shown.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            crate::report::print(self.tail());
        }
    }
}

/// Fails unless the process ended with exit code 0.
pub fn check_clean(name: &str, status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "{name} did not end cleanly: {status}");
    Ok(())
}

/// How many lines of a log hold all of `words`.
pub fn logged(log: &Path, words: &[&str]) -> Result<usize> {
    let log = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    Ok(String::from_utf8_lossy(&log).lines().filter(has_all).count())
}
