//! Starts programs, and ends those that run when this one is stopped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What runs, and ends with this process.
static RUNNING: Mutex<BTreeSet<Running>> = Mutex::new(BTreeSet::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Running {
    /// A child has its own process group: a signal sent to this process alone would otherwise leave
    /// a build and its tests running.
    Group(i32),
    /// A virtual machine that is being booted.
    Process(i32),
}

impl Running {
    fn end(self) {
        let ended = match self {
            Self::Group(group) => Pid::from_raw(group).map(|it| kill_process_group(it, Signal::TERM)),
            Self::Process(pid) => Pid::from_raw(pid).map(|it| kill_process(it, Signal::TERM)),
        };
        if let Some(Err(error)) = ended {
            eprintln!("cannot end {self:?}: {error}");
        }
    }
}

/// Ends what runs, and all that it started, when a Ctrl-C, SIGTERM or SIGHUP comes.
pub(crate) fn end_children_on_signals() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        for running in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            running.end();
        }
        std::process::exit(130);
    })
    .context("cannot install the signal handler")
}

/// Ends a process with this one, until it is dropped.
#[must_use]
pub(crate) struct EndsWithThis(Running);

impl EndsWithThis {
    /// As if it were a child.
    pub(crate) fn new(pid: Pid) -> Self {
        Self::add(Running::Process(pid.as_raw_nonzero().get()))
    }

    fn group(leader: &Child) -> Self {
        Self::add(Running::Group(i32::try_from(leader.id()).expect("a process id fits")))
    }

    fn add(running: Running) -> Self {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(running);
        Self(running)
    }
}

impl Drop for EndsWithThis {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// The command as typed in a shell.
pub(crate) fn shown(command: &Command) -> String {
    let env = command.get_envs().filter_map(|(key, value)| {
        // Long lists of flags hide the command; the variables that people set by hand are short.
        let value = value?.to_string_lossy();
        (value.len() < 60).then(|| format!("{}={}", key.to_string_lossy(), quoted(&value)))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    env.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"*$\u{1f}".contains(c)) {
        format!("'{}'", word.replace('\u{1f}', " "))
    } else {
        word.to_owned()
    }
}

/// Runs it, its output passing through.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let (mut child, _ends) = start(command)?;
    check(child.wait(), command)
}

/// Runs it beside other commands at the lowest priority, its output in the file `log`.
pub(crate) fn run_beside(command: &Command, log: &Path) -> anyhow::Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(key, value),
            None => nice.env_remove(key),
        };
    }
    nice.stdout(file.try_clone()?).stderr(file);
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    let (mut child, _ends) = start(&mut nice)?;
    check(child.wait(), command)
}

/// Runs all of them beside each other, in one process group, and answers how each ended.
pub(crate) fn run_together(commands: &mut [Command]) -> anyhow::Result<Vec<anyhow::Result<()>>> {
    let mut children: Vec<Child> = Vec::new();
    let mut ends = None;
    for command in commands.iter_mut() {
        println!("$ {}", shown(command));
        // The first leads; it is waited for after all have started, so that its group is there for
        // the others.
        match children.first() {
            None => {
                let (first, group) = start(command)?;
                children.push(first);
                ends = Some(group);
            }
            Some(first) => {
                let group = i32::try_from(first.id()).expect("a process id fits");
                let child = command.stdin(Stdio::null()).process_group(group).spawn();
                children.push(child.with_context(|| format!("cannot start {}", shown(command)))?);
            }
        }
    }
    let ended: Vec<_> = children.iter_mut().map(Child::wait).collect();
    drop(ends);
    let ends = ended.into_iter().zip(commands).map(|(status, command)| check(status, command));
    Ok(ends.collect())
}

/// Runs it, its output passing through, and hands each line of its standard output to `line`.
pub(crate) fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let (mut child, _ends) = start(command.stdout(Stdio::piped()))?;
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut bytes = Vec::new();
    let mut terminal = std::io::stdout().lock();
    while output.read_until(b'\n', &mut bytes).context("cannot read the output")? > 0 {
        terminal.write_all(&bytes).and_then(|()| terminal.flush()).context("cannot write the output")?;
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    drop(terminal);
    check(child.wait(), command)
}

/// Runs it and answers its standard output, trimmed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!("{}: {}: {}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn start(command: &mut Command) -> anyhow::Result<(Child, EndsWithThis)> {
    // Without a terminal as input no child can stop for being in the background.
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    let child = child.with_context(|| format!("cannot start {}", shown(command)))?;
    let ends = EndsWithThis::group(&child);
    Ok((child, ends))
}

fn check(status: std::io::Result<ExitStatus>, command: &Command) -> anyhow::Result<()> {
    let status = status.with_context(|| format!("cannot wait for {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().to_string_lossy());
    }
    Ok(())
}
