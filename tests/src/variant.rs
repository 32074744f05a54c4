//! Deaths that stock shims miss, counted for variants that take turns: the first and the final
//! reading of CRI for each.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;

use crate::cri::{Container, Cri, Pod};
use crate::outcome::Reading;

/// Sets another number of runs, for a short or a long form.
const RUNS_VARIABLE: &str = "CORONER_TEST_RUNS";
/// Containers started at once. Alone, a stock shim sets up its watch in time nearly always; with
/// some starting beside each other on two cores it is late for one in ten. All variants start as
/// many.
const AT_ONCE: usize = 10;
/// 8 MB hold runc's own start, which takes 6, and nothing more: memory runs out a few milliseconds
/// after start.
const LIMIT_MB: i64 = 8;
/// A container's end comes within a second; this allows for a machine that builds Rust beside.
const END: Duration = Duration::from_secs(30);

/// Runs of each case in each variant.
pub fn runs(usual: usize) -> Result<usize> {
    match std::env::var(RUNS_VARIABLE) {
        Ok(runs) => runs.parse().with_context(|| format!("{RUNS_VARIABLE}={runs} is not a number")),
        Err(_) => Ok(usual),
    }
}

/// Names of containers to start at once, and whether it is stock's turn. The variant that goes
/// first alternates, so that a machine that gets busier favours neither.
pub fn turns(case: &str, runs: usize) -> impl Iterator<Item = (bool, Vec<String>)> {
    (0..runs).step_by(AT_ONCE).enumerate().flat_map(move |(block, done)| {
        let names: Vec<_> = (done..runs.min(done + AT_ONCE)).map(|run| format!("{case}-{run}")).collect();
        [(block % 2 == 0, names.clone()), (block % 2 != 0, names)]
    })
}

/// The outcomes of one variant of one case.
#[derive(Debug, Default)]
pub struct Variant {
    outcomes: BTreeMap<(Reading, Reading), usize>,
    not_started: usize,
    /// Not OOMKilled in the end.
    pub missed: usize,
    /// Not OOMKilled at the first reading.
    pub first_wrong: usize,
}

impl Variant {
    /// Runs one container for each name, all at once, and returns those with a final reason other
    /// than OOMKilled.
    pub async fn run(
        &mut self,
        cri: &mut Cri,
        pod: &Pod,
        names: &[String],
        arguments: &str,
    ) -> Result<Vec<Container>> {
        let runs = names.iter().map(|name| run(cri.clone(), pod, name, arguments));
        let mut ended = Vec::new();
        for run in join_all(runs).await {
            match run? {
                Ok(run) => ended.push(run),
                Err(container) => {
                    self.not_started += 1;
                    cri.remove(&container).await?;
                }
            }
        }
        let (containers, firsts): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
        let finals = cri.final_readings(&containers).await?;
        let mut missed = Vec::new();
        for ((container, first), last) in containers.into_iter().zip(firsts).zip(finals) {
            cri.remove(&container).await?;
            self.first_wrong += usize::from(!first.is_oom());
            if !last.is_oom() {
                self.missed += 1;
                missed.push(container);
            }
            *self.outcomes.entry((first, last)).or_default() += 1;
        }
        Ok(missed)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcomes, not_started, missed, first_wrong } = self;
        let all: usize = outcomes.values().sum();
        write!(
            out,
            "of {all} {missed} missed for good, {first_wrong} wrong at first, {not_started} not started; first -> final: "
        )?;
        for (at, ((first, last), count)) in outcomes.iter().enumerate() {
            write!(out, "{}{count} x {first} -> {last}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A container and its first reading, or a container that could not be started: at this limit runc
/// itself may be killed, and what CRI then shows does not count as a reading.
async fn run(
    mut cri: Cri,
    pod: &Pod,
    name: &str,
    arguments: &str,
) -> Result<Result<(Container, Reading), Container>> {
    let container = cri.create(pod, name, LIMIT_MB, arguments).await?;
    if cri.start(&container).await.is_err() {
        return Ok(Err(container));
    }
    let first = cri.first_reading(&container, END).await?;
    Ok(Ok((container, first)))
}
