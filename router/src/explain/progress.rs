//! How far a long read is, for a person who waits.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nobody needs to be told of less.
const LONG: Duration = Duration::from_secs(1);
/// Between two looks at the screen.
const OFTEN: Duration = Duration::from_millis(100);
const MIB: u64 = 1 << 20;
const WIDTH: u64 = 30;

/// A bar on standard error, on a terminal alone.
#[derive(Debug)]
pub(super) struct Progress {
    all: u64,
    read: u64,
    since_shown: u64,
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(super) fn new(all: u64) -> Self {
        let next = std::io::stderr().is_terminal().then(|| Instant::now() + LONG);
        Self { all, read: 0, since_shown: 0, next, shown: false }
    }

    pub(super) fn more(&mut self, bytes: u64) {
        self.read += bytes;
        self.since_shown += bytes;
        // The clock is asked once a mebibyte: a line takes less than asking does.
        if self.since_shown < MIB {
            return;
        }
        self.since_shown = 0;
        let now = Instant::now();
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + OFTEN);
            self.shown = true;
            Self::write(&format!("\r{}", bar(self.read, self.all)));
        }
    }

    pub(super) fn done(&mut self) {
        if self.shown {
            Self::write("\r\u{1b}[K");
        }
    }

    fn write(text: &str) {
        let mut out = std::io::stderr().lock();
        // A terminal that is gone is no reason to stop reading.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap_or(());
    }
}

fn bar(read: u64, all: u64) -> String {
    // A file that grows meanwhile does not go past its end.
    let done = WIDTH * read.min(all) / all.max(1);
    let bar: String = (0..WIDTH).map(|at| if at < done { '#' } else { '.' }).collect();
    format!("[{bar}] {} of {} MiB", read / MIB, all.max(read) / MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_and_stays_within_its_ends() {
        assert_eq!(bar(0, 0), format!("[{}] 0 of 0 MiB", ".".repeat(30)));
        assert_eq!(bar(50 * MIB, 100 * MIB), format!("[{}{}] 50 of 100 MiB", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(101 * MIB, 100 * MIB), format!("[{}] 101 of 101 MiB", "#".repeat(30)));
    }
}
