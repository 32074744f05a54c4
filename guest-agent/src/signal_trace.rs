//! Signals that can end a process, by the kernel's tracepoint: in a trace instance of their own, so
//! that a flood of them overwrites no mark of the OOM killer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tokio::time::Instant;

use crate::trace::{Trace, TraceError, TraceLine};

/// Delivered signals that end a process by default. Signals of timers are left out: they may come a
/// thousand times a second. So are SIGUSR1, SIGUSR2 and SIGXCPU to a single thread: garbage
/// collectors stop each thread by one.
const FILTER: &str = "result == 0 && (sig <= 9 || sig == 11 || sig == 13 || sig == 15 || sig == 25 || sig == 31 \
                      || (code != -6 && (sig == 10 || sig == 12 || sig == 24)))";
const SETTINGS: [(&str, &str); 2] =
    [("events/signal/signal_generate/filter", FILTER), ("events/signal/signal_generate/enable", "1")];
/// Signals of the machine that are read in one window. Without a limit any process, in a container
/// or not, could keep a processor busy with the agent. Above it the pipe is read at the next
/// window, and when a process ended by a signal.
const WINDOW: Duration = Duration::from_millis(100);
const MAX_EVENTS: u32 = 512;
/// Reads of /proc in one window, each some 20 us: about signals to followed processes, and to
/// others. Above it the sender is unknown.
const MAX_FOLLOWED_READS: u32 = 100;
const MAX_OTHER_READS: u32 = 25;
/// Reads of the pipe after a process ended by a signal, each some 40 events: a flood fills the
/// buffer as fast as it is read.
const MAX_READS: usize = 64;

/// A trace instance of its own, with the signals on.
#[derive(Debug)]
pub(crate) struct SignalTrace {
    trace: Trace,
    window: Window,
}

/// What was done since `began`.
#[derive(Debug)]
pub(crate) struct Window {
    began: Instant,
    events: u32,
    followed_reads: u32,
    other_reads: u32,
}

impl SignalTrace {
    pub(crate) fn open() -> Result<Self, TraceError> {
        Ok(Self { trace: Trace::open("-signals", &SETTINGS)?, window: Window::begin(Instant::now()) })
    }

    /// Reads the lines since the last call. `all`: also if this window has had its events.
    pub(crate) fn drain(&mut self, all: bool, mut each: impl FnMut(&mut Window, TraceLine)) {
        let Self { trace, window } = self;
        let now = Instant::now();
        if now >= window.began + WINDOW {
            *window = Window::begin(now);
        }
        for _ in 0..MAX_READS {
            let before = window.events;
            trace.drain(1, |line| {
                window.events += 1;
                each(window, line);
            });
            if window.events == before || !all && window.events > MAX_EVENTS {
                return;
            }
        }
    }

    /// When to read again, if this window has had its events.
    pub(crate) fn flooded_until(&self) -> Option<Instant> {
        (self.window.events > MAX_EVENTS).then_some(self.window.began + WINDOW)
    }
}

impl Window {
    fn begin(began: Instant) -> Self {
        Self { began, events: 0, followed_reads: 0, other_reads: 0 }
    }

    /// Whether /proc may be read for a signal to a followed process, or to another one.
    pub(crate) fn may_read(&mut self, is_followed: bool) -> bool {
        let (count, most) = match is_followed {
            true => (&mut self.followed_reads, MAX_FOLLOWED_READS),
            false => (&mut self.other_reads, MAX_OTHER_READS),
        };
        *count += 1;
        *count <= most
    }
}

impl AsFd for SignalTrace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.trace.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_others_leave_those_of_followed_processes() {
        let mut window = Window::begin(Instant::now());
        let reads = (0..1000).filter(|_| window.may_read(false)).count();
        assert_eq!(reads, MAX_OTHER_READS as usize);
        let reads = (0..1000).filter(|_| window.may_read(true)).count();
        assert_eq!(reads, MAX_FOLLOWED_READS as usize);
    }
}
