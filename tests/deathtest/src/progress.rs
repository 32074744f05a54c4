//! One line on standard error that shows how far a run is, on terminals only.

use std::io::{self, IsTerminal, Write};

/// The line. Dropped, it is erased.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    done: usize,
    all: usize,
}

impl Progress {
    /// A line for `all` containers.
    pub(crate) fn new(all: usize) -> Self {
        Self { is_terminal: io::stderr().is_terminal(), done: 0, all }
    }

    /// Shows the container that is about to be started.
    pub(crate) fn next(&mut self, handler: &str, case: &str) {
        self.done += 1;
        self.show(&format!("{} of {}: {handler}, {case}", self.done, self.all));
    }

    fn show(&self, text: &str) {
        if self.is_terminal {
            let mut out = io::stderr().lock();
            write!(out, "\r\u{1b}[K{text}").and_then(|()| out.flush()).ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
