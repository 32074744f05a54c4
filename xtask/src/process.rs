//! Starts programs one after the other, and ends the running one when this one is stopped.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The process group of the running child, 0 when there is none. One at a time: steps run in order.
static RUNNING: AtomicI32 = AtomicI32::new(0);
/// A virtual machine that is being booted beside the running child, 0 when there is none.
static BOOTING: AtomicI32 = AtomicI32::new(0);

/// Ends the running child and all that it started when a Ctrl-C, SIGTERM or SIGHUP comes. A child
/// has its own process group: a signal sent to this process alone would otherwise leave a build and
/// its tests running.
pub(crate) fn end_children_on_signals() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if let Some(group) = Pid::from_raw(RUNNING.load(Ordering::SeqCst))
            && let Err(error) = kill_process_group(group, Signal::TERM)
        {
            eprintln!("cannot end process group {group:?}: {error}");
        }
        if let Some(pid) = Pid::from_raw(BOOTING.load(Ordering::SeqCst))
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            eprintln!("cannot end process {pid:?}: {error}");
        }
        std::process::exit(130);
    })
    .context("cannot install the signal handler")
}

/// Ends a process with this one, as if it were its child, until it is dropped.
#[must_use]
pub(crate) struct EndsWithThis(());

impl EndsWithThis {
    pub(crate) fn new(pid: Pid) -> Self {
        BOOTING.store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
        Self(())
    }
}

impl Drop for EndsWithThis {
    fn drop(&mut self) {
        BOOTING.store(0, Ordering::SeqCst);
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
    wait(start(command)?, command)
}

/// Runs all of them beside each other, in one process group, and answers how each ended.
pub(crate) fn run_together(commands: &mut [Command]) -> anyhow::Result<Vec<anyhow::Result<()>>> {
    let mut children: Vec<Child> = Vec::new();
    for command in commands.iter_mut() {
        println!("$ {}", shown(command));
        // The first leads; it is waited for after all have started, so that its group is there for
        // the others.
        match children.first() {
            None => children.push(start(command)?),
            Some(first) => {
                let group = i32::try_from(first.id()).expect("a process id fits");
                let child = command.stdin(Stdio::null()).process_group(group).spawn();
                children.push(child.with_context(|| format!("cannot start {}", shown(command)))?);
            }
        }
    }
    let ended: Vec<_> = children.iter_mut().map(Child::wait).collect();
    RUNNING.store(0, Ordering::SeqCst);
    let ends = ended.into_iter().zip(commands).map(|(status, command)| check(status, command));
    Ok(ends.collect())
}

/// Runs it, its output passing through, and hands each line of its standard output to `line`.
pub(crate) fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let mut child = start(command.stdout(Stdio::piped()))?;
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut bytes = Vec::new();
    let mut terminal = std::io::stdout().lock();
    while output.read_until(b'\n', &mut bytes).context("cannot read the output")? > 0 {
        terminal.write_all(&bytes).and_then(|()| terminal.flush()).context("cannot write the output")?;
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    drop(terminal);
    wait(child, command)
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

fn start(command: &mut Command) -> anyhow::Result<Child> {
    // Without a terminal as input no child can stop for being in the background.
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    let child = child.with_context(|| format!("cannot start {}", shown(command)))?;
    RUNNING.store(i32::try_from(child.id()).expect("a process id fits"), Ordering::SeqCst);
    Ok(child)
}

fn wait(mut child: Child, command: &Command) -> anyhow::Result<()> {
    let status = child.wait();
    RUNNING.store(0, Ordering::SeqCst);
    check(status, command)
}

fn check(status: std::io::Result<ExitStatus>, command: &Command) -> anyhow::Result<()> {
    let status = status.with_context(|| format!("cannot wait for {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().to_string_lossy());
    }
    Ok(())
}
