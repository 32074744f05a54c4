//! Prints numbers past libtest's capture, so that a passing gate shows them too.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

/// Prints one line on standard error.
pub fn print(line: impl Display) {
    // A closed standard error does not fail a test.
    drop(writeln!(std::io::stderr().lock(), "    {line}"));
}

/// Prints how many seconds a case took when it ends, passed or not.
#[derive(Debug)]
pub struct Timed {
    case: &'static str,
    start: Instant,
}

/// Starts the clock of `case`.
pub fn timed(case: &'static str) -> Timed {
    Timed { case, start: Instant::now() }
}

impl Drop for Timed {
    fn drop(&mut self) {
        print(format_args!("{}: {:.1} s", self.case, self.start.elapsed().as_secs_f64()));
    }
}
