//! Counts test cases from what `cargo test` prints.

use std::ops::AddAssign;

use anyhow::bail;

/// Sums of the `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    /// Cases that passed.
    pub(crate) passed: usize,
    /// Cases that failed.
    pub(crate) failed: usize,
    /// Cases that did not run.
    pub(crate) ignored: usize,
}

impl Results {
    /// Takes a line of output in. `test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; ...`
    /// counts; with `--nocapture` it may follow what a test printed without a line's end.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let Some((_, counts)) = counts.split_once(". ") else { return };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Whether this is the result of a suite that ran, and ran whole.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        match self {
            Self { failed: 1.., .. } => bail!("{} of its tests failed", self.failed),
            Self { ignored: 1.., .. } => bail!("{} of its tests are ignored; no suite skips", self.ignored),
            Self { passed: 0, .. } => bail!("it ran no test"),
            Self { .. } => Ok(()),
        }
    }
}

impl AddAssign for Results {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], (passed, failed, ignored): (usize, usize, usize)) {
        let mut results = Results::default();
        lines.iter().for_each(|line| results.read(line));
        assert_eq!(results, Results { passed, failed, ignored }, "{lines:?}");
    }

    #[test]
    fn cases_are_summed_over_all_result_lines() {
        let ok =
            "test result: ok. 9 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let bad =
            "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1s";
        check(&[], (0, 0, 0));
        check(&["running 9 tests", "test a ... ok", ok], (9, 0, 2));
        check(&[ok, bad], (10, 3, 2));
        check(&[&format!("half a line{ok}")], (9, 0, 2));
        check(&["test result: unreadable", "test result: ok. many passed"], (0, 0, 0));
    }

    #[test]
    fn suite_that_skips_or_runs_nothing_fails() {
        let check = |passed, failed, ignored, expect: Option<&str>| {
            let error = Results { passed, failed, ignored }.check().err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), expect);
        };
        check(1, 0, 0, None);
        check(0, 0, 0, Some("it ran no test"));
        check(5, 0, 1, Some("1 of its tests are ignored; no suite skips"));
        check(5, 2, 0, Some("2 of its tests failed"));
    }
}
