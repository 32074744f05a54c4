//! A trace instance of the agent's own: created with its events on, read by `trace_pipe`, removed
//! when dropped.

mod events;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use events::Unread;

pub(crate) use events::{SignalEvent, TraceEvent, TraceLine, Traced};

pub(crate) const SIGKILL: u32 = 9;

/// Where tracefs is mounted: at boot by systemd, and by older systems below debugfs.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Names of the agents' instances begin so; the pid of the agent follows.
const PREFIX: &str = "coroner-";
/// Bytes read at once: the kernel fills at most a buffer of two pages.
const BUFFER: usize = 8 << 10;
/// What a new instance has from the whole machine's trace, and what a line is parsed as.
const FORMAT: [(&str, &str); 10] = [
    ("context-info", "1"),
    ("irq-info", "1"),
    ("record-tgid", "0"),
    ("latency-format", "0"),
    ("fields", "0"),
    ("raw", "0"),
    ("hex", "0"),
    ("bin", "0"),
    ("block", "0"),
    ("stacktrace", "0"),
];
/// KiB of each processor: some hundred events. Readers are woken by each event and not by a
/// half-full buffer, where the kernel knows that setting (5.0).
const BUFFER_KIB: &str = "16";

/// Why the tracepoints are not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("tracefs is not mounted at {}", MOUNTS.join(" or "))]
    Absent,
    #[error("cannot create the trace instance {path}: {source}")]
    Instance { path: String, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: io::Error },
    #[error("cannot open {path}: {source}")]
    Open { path: String, source: Errno },
}

/// The events of one instance.
#[derive(Debug)]
pub(crate) struct Trace {
    pipe: OwnedFd,
    unread: Unread,
    /// Dropped last: an instance with an open pipe cannot be removed.
    _instance: Instance,
}

#[derive(Debug)]
struct Instance(PathBuf);

impl Trace {
    /// Creates the instance `coroner-PID` and `suffix`, and writes `settings` to its files.
    pub(crate) fn open(suffix: &str, settings: &[(&str, &str)]) -> Result<Self, TraceError> {
        let mount = mount().ok_or(TraceError::Absent)?;
        let instances = mount.join("instances");
        remove_left_over(&instances);
        let path = instances.join(format!("{PREFIX}{}{suffix}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| TraceError::Instance { path: shown(&path), source })?;
        let instance = Instance(path);
        let path = instance.0.join("trace_pipe");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|source| TraceError::Open { path: shown(&path), source })?;
        for (name, value) in FORMAT {
            // Not every kernel has each of them.
            std::fs::write(instance.0.join("options").join(name), value).ok();
        }
        std::fs::write(instance.0.join("buffer_percent"), "0").ok();
        for (name, value) in [("trace_clock", "boot"), ("buffer_size_kb", BUFFER_KIB)].iter().chain(settings)
        {
            let path = instance.0.join(name);
            std::fs::write(&path, value)
                .map_err(|source| TraceError::Write { path: shown(&path), source })?;
        }
        Ok(Self { pipe, unread: Unread::default(), _instance: instance })
    }

    /// Whether tracefs is mounted and can be read.
    pub(crate) fn is_available() -> bool {
        mount().is_some()
    }

    /// Reads the lines since the last call, with at most `most` reads.
    pub(crate) fn drain(&mut self, most: usize, mut each: impl FnMut(TraceLine)) {
        let mut buffer = [0; BUFFER];
        for _ in 0..most {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => return,
                Ok(length) => self.unread.push(&buffer[..length], &mut each),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Trace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}

fn mount() -> Option<&'static Path> {
    MOUNTS.iter().map(Path::new).find(|mount| mount.join("instances").is_dir())
}

/// Removes the instances of agents that were killed. The kernel refuses to remove one that is open.
fn remove_left_over(instances: &Path) {
    for entry in std::fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let pid = name.split('-').next().unwrap_or_default();
        // An agent that has just started may not have opened its own yet.
        if !Path::new("/proc").join(pid).exists() {
            std::fs::remove_dir(entry.path()).ok();
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
