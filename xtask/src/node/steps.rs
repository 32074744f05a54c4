//! Progress of a build: a line with the minutes of each step.

use std::time::{Duration, Instant};

/// Steps that need less are found in the cache, and need no line of their own.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Steps(Vec<(String, Duration)>);

impl Steps {
    /// Runs a step, and prints its minutes where it did work.
    pub(super) fn run<T>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let outcome = step();
        let took = start.elapsed();
        if outcome.is_err() || took >= WORTH_A_LINE {
            println!("{}", line(name, took, if outcome.is_ok() { "ok" } else { "FAILED" }));
        }
        self.0.push((name.to_owned(), took));
        outcome.map_err(|error| error.context(format!("step {name} failed")))
    }

    /// Prints all steps, and the sum.
    pub(super) fn print(&self) {
        println!();
        for (name, took) in &self.0 {
            println!("{}", line(name, *took, "ok"));
        }
        println!("{}", line("together", self.0.iter().map(|(_, took)| *took).sum(), ""));
    }
}

fn line(name: &str, took: Duration, outcome: &str) -> String {
    format!("{name:<18} {:>5.1} min  {outcome}", took.as_secs_f64() / 60.0).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_name_minutes_and_outcome() {
        let took = Duration::from_secs(90);
        assert_eq!(line("kubernetes", took, "ok"), "kubernetes           1.5 min  ok");
        assert_eq!(line("together", took, ""), "together             1.5 min");
    }

    #[test]
    fn failed_step_is_named_in_its_error() {
        let error = Steps::default().run("disk", || anyhow::bail!("full")).map(|(): ()| ()).unwrap_err();
        assert_eq!(format!("{error:#}"), "step disk failed: full");
    }
}
