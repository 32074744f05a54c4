//! The main promise of mode `beside`, counted: final reasons are at least as right as stock, on the deaths that stock misses.

use std::collections::BTreeMap;
use std::env;

use anyhow::{Context, Result};
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::outcome::Reading;
use coroner_tests::report::{say, timed};
use futures::future::join_all;

use crate::beside::{Coroner, END, alone, is_ruled};

/// Runs of each case in each arm.
const RUNS: usize = 100;
/// Another number of runs, for a quick look.
const RUNS_VARIABLE: &str = "CORONER_TEST_RUNS";

/// Containers started at once. Alone, a stock shim arms its watch in time nearly always; with some starting beside each
/// other on two cores it is late for one in ten. Both arms do alike.
const AT_ONCE: usize = 10;

/// 8 MB hold runc's own start, which takes 6, and nothing more: memory runs out a few milliseconds after start.
const LIMIT_MB: i64 = 8;

const CASES: [(&str, &str); 2] = [("child-oom-parent-exits-1", "child 64 1 0"), ("instant-oom", "self 64")];

#[tokio::test]
async fn final_reasons_are_at_least_as_right_as_stock() {
    let _turn = alone().await;
    let _timed = timed("final_reasons_are_at_least_as_right_as_stock");
    let runs =
        env::var(RUNS_VARIABLE).map_or(RUNS, |runs| runs.parse().expect("CORONER_TEST_RUNS is a number"));
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "reasons").await.unwrap();
    let mut coroner = Coroner::start(&containerd).await.unwrap();
    coroner.stop().await.unwrap();

    let (mut stock_misses, mut our_misses, mut unexplained) = (0, 0, Vec::new());
    for (case, arguments) in CASES {
        let (mut stock, mut ours) = (Arm::default(), Arm::default());
        for (block, done) in (0..runs).step_by(AT_ONCE).enumerate() {
            let names: Vec<_> = (done..runs.min(done + AT_ONCE)).map(|run| format!("{case}-{run}")).collect();
            // Which arm goes first alternates, so that a machine that gets busier favours neither.
            for with_coroner in [block % 2 == 0, block % 2 != 0] {
                if with_coroner {
                    coroner.start_again().await.unwrap();
                    let missed = ours.run(&mut cri, &pod, &names, arguments).await.unwrap();
                    for container in missed {
                        match explain(&coroner, &container).await {
                            Ok(why) => *ours.explained.entry(why).or_default() += 1,
                            Err(error) => unexplained.push(format!("{}: {error:#}", container.name)),
                        }
                    }
                    coroner.stop().await.unwrap();
                } else {
                    stock.run(&mut cri, &pod, &names, arguments).await.unwrap();
                }
            }
        }
        say(format_args!("{case}, stock:        {}", stock.summary()));
        say(format_args!("{case}, with coroner: {}", ours.summary()));
        stock_misses += stock.misses;
        our_misses += ours.misses;
    }
    assert!(unexplained.is_empty(), "misses the audit does not explain: {unexplained:#?}");
    assert!(our_misses <= stock_misses, "{our_misses} misses with coroner, {stock_misses} without");
}

/// The outcomes of one arm of one case.
#[derive(Debug, Default)]
struct Arm {
    outcomes: BTreeMap<(Reading, Reading), usize>,
    not_started: usize,
    misses: usize,
    explained: BTreeMap<String, usize>,
}

impl Arm {
    /// Runs one container for each name, all at once, and returns those whose final reason is not OOMKilled.
    async fn run(
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
            if !last.is_oom() {
                self.misses += 1;
                missed.push(container);
            }
            *self.outcomes.entry((first, last)).or_default() += 1;
        }
        Ok(missed)
    }

    fn summary(&self) -> String {
        let outcomes =
            self.outcomes.iter().map(|((first, last), count)| format!("{count} x {first} -> {last}"));
        let outcomes = outcomes.collect::<Vec<_>>().join(", ");
        let Self { misses, not_started, explained, .. } = self;
        format!(
            "{misses} missed, {not_started} not started; first -> final: {outcomes}; misses explained by {explained:?}"
        )
    }
}

/// A container and its first reading, or a container that could not be started: at this limit runc itself may be
/// killed, and what CRI then shows is no reading of ours.
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

/// Why the audit says that no OOM kill is known of a container: what it could not know, or that nothing was counted.
async fn explain(coroner: &Coroner, container: &Container) -> Result<String> {
    let exited = coroner.ruled("exited", container).await?;
    let attributes = exited["signal"]["attributes"].as_array().context("a signal has attributes")?;
    if let Some(why) = attributes.iter().find(|attribute| attribute[0] == "unknown-because") {
        return Ok(why[1].to_string());
    }
    let audit = coroner.router.audit()?;
    let counted = audit.iter().find(|record| is_ruled(record, "oom-kill", &container.id));
    match counted {
        None => Ok(format!("nothing was counted, kills in the case: {}", exited["case"]["kills"])),
        Some(kill) => anyhow::bail!("a kill was counted, ruled and not delivered: {}", kill["delivery"]),
    }
}
