//! Tracepoints of the OOM killer: one event for each process that it kills. They have no rate
//! limit, unlike the kernel's log, and no cgroup.

mod marks;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

pub(crate) use marks::Mark;

use crate::shared_state::now;
use crate::trace::{Trace, TraceError, TraceLine};
use marks::Marks;

const SETTINGS: [(&str, &str); 3] = [
    ("events/signal/signal_generate/filter", "sig == 9 && code == 128"),
    ("events/signal/signal_generate/enable", "1"),
    ("events/oom/mark_victim/enable", "1"),
];
/// A victim's cgroup is read from /proc for this long after its mark. Later its pid may be that of
/// another process: a stopped agent reads old marks.
const FRESH: Duration = Duration::from_secs(1);

/// A trace instance of its own, with the two events on.
#[derive(Debug)]
pub(crate) struct OomTrace {
    trace: Trace,
    marks: Marks,
}

impl OomTrace {
    pub(crate) fn open() -> Result<Self, TraceError> {
        Ok(Self { trace: Trace::open("", &SETTINGS)?, marks: Marks::default() })
    }

    /// Reads the events since the last call. `cgroup_of` gets a victim's pid, and whether the mark
    /// is so young that no other process can have that pid.
    pub(crate) fn drain(&mut self, cgroup_of: impl Fn(u32, bool) -> Option<String>) {
        let now = Duration::from_nanos(now().boot_ns);
        let Self { trace, marks } = self;
        marks.expire(now);
        trace.drain(usize::MAX, |line| match line {
            TraceLine::Event(traced) => {
                let is_fresh = now.saturating_sub(traced.at) < FRESH;
                marks.add(traced, |pid| cgroup_of(pid, is_fresh));
            }
            TraceLine::Lost => marks.lost(now),
        });
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

    /// Takes the kill of this process, in whatever cgroup it was.
    pub(crate) fn take_victim(&mut self, pid: u32) -> bool {
        self.marks.take_victim(pid)
    }

    /// The victim `thread` is a thread of process `pid`.
    pub(crate) fn resolve(&mut self, thread: u32, pid: u32) {
        self.marks.resolve(thread, pid);
    }

    /// Whether a recent kill has left its mark here: none was lost.
    pub(crate) fn is_complete(&self) -> bool {
        self.marks.is_complete()
    }
}

impl AsFd for OomTrace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.trace.as_fd()
    }
}
