//! Tracepoints of the OOM killer: one event for each process that it kills. They have no rate
//! limit, unlike the kernel's log, and no cgroup.

mod events;
mod marks;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use marks::Mark;

use crate::shared_state::now;
use events::Unread;
use marks::Marks;

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
const SETTINGS: [(&str, &str); 5] = [
    ("trace_clock", "boot"),
    ("buffer_size_kb", BUFFER_KIB),
    ("events/signal/signal_generate/filter", "sig == 9 && code == 128"),
    ("events/signal/signal_generate/enable", "1"),
    ("events/oom/mark_victim/enable", "1"),
];
/// A victim's cgroup is read from /proc for this long after its mark. Later its pid may be that of
/// another process: a stopped agent reads old marks.
const FRESH: Duration = Duration::from_secs(1);

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

/// A trace instance of its own, with the two events on. It is removed when dropped.
#[derive(Debug)]
pub(crate) struct OomTrace {
    pipe: OwnedFd,
    unread: Unread,
    marks: Marks,
    /// Dropped last: an instance with an open pipe cannot be removed.
    _instance: Instance,
}

#[derive(Debug)]
struct Instance(PathBuf);

impl OomTrace {
    pub(crate) fn open() -> Result<Self, TraceError> {
        let mount = mount().ok_or(TraceError::Absent)?;
        let instances = mount.join("instances");
        remove_left_over(&instances);
        let path = instances.join(format!("{PREFIX}{}", std::process::id()));
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
        for (name, value) in SETTINGS {
            let path = instance.0.join(name);
            std::fs::write(&path, value)
                .map_err(|source| TraceError::Write { path: shown(&path), source })?;
        }
        Ok(Self { pipe, unread: Unread::default(), marks: Marks::default(), _instance: instance })
    }

    /// Whether tracefs is mounted and can be read.
    pub(crate) fn is_available() -> bool {
        mount().is_some()
    }

    /// Reads the events since the last call. `cgroup_of` gets a victim's pid, and whether the mark
    /// is so young that no other process can have that pid.
    pub(crate) fn drain(&mut self, cgroup_of: impl Fn(u32, bool) -> Option<String>) {
        let now = Duration::from_nanos(now().boot_ns);
        self.marks.expire(now);
        let mut buffer = [0; BUFFER];
        loop {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let marks = &mut self.marks;
                    self.unread.push(&buffer[..length], |traced| {
                        let is_fresh = now.saturating_sub(traced.at) < FRESH;
                        marks.add(traced, |pid| cgroup_of(pid, is_fresh));
                    });
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes the cgroups of marks that were added since the last call.
    pub(crate) fn take_marked(&mut self) -> Vec<String> {
        self.marks.take_marked()
    }

    /// Takes the marks of processes in `cgroup` or below it: the latest that was killed, and their
    /// number.
    pub(crate) fn claim(&mut self, cgroup: &str) -> Option<(Mark, u64)> {
        self.marks.claim(cgroup)
    }
}

impl AsFd for OomTrace {
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
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        // An agent that has just started may not have opened its own yet.
        if !Path::new("/proc").join(pid).exists() {
            std::fs::remove_dir(entry.path()).ok();
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
