//! When the kernel killed: `oom:mark_victim` in a trace instance of its own, on the clock of
//! `Instant`. Nothing is polled meanwhile, so that the measurement takes no processor.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

const INSTANCES: &str = "/sys/kernel/tracing/instances";

/// The kernel's trace of the processes that its OOM killer chose.
#[derive(Debug)]
pub(crate) struct Trace {
    pipe: OwnedFd,
    instance: PathBuf,
}

impl Trace {
    pub(crate) fn open() -> Result<Self> {
        let instance = PathBuf::from(INSTANCES).join(format!("bench-{}", std::process::id()));
        fs::create_dir(&instance).with_context(|| format!("creating {}", instance.display()))?;
        // `Instant` is CLOCK_MONOTONIC.
        for (name, value) in [("trace_clock", "mono"), ("events/oom/mark_victim/enable", "1")] {
            fs::write(instance.join(name), value).with_context(|| format!("writing {name}"))?;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(instance.join("trace_pipe"), flags, Mode::empty())?;
        Ok(Self { pipe, instance })
    }

    /// When the first victim since the last call was chosen.
    pub(crate) fn first_kill(&self) -> Result<Instant> {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("reading the trace"),
            }
        }
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| line.contains(" mark_victim: "));
        let line = line.with_context(|| format!("no victim in the trace: {text}"))?;
        at(line).with_context(|| format!("no time in {line}"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // The kernel refuses while the pipe is open: the node is thrown away with it.
        fs::remove_dir(&self.instance).ok();
    }
}

/// `oomtest-1234 [001] .....  4711.123456: mark_victim: pid=1234 ...`
fn at(line: &str) -> Option<Instant> {
    let (before, _) = line.split_once(": mark_victim: ")?;
    let seconds: f64 = before.split_whitespace().last()?.parse().ok()?;
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
    Instant::now().checked_sub(now.checked_sub(Duration::from_secs_f64(seconds))?)
}
