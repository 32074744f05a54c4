//! Memory that runs out within milliseconds of a start, which stock shims miss: counted against stock, in one containerd, in turns.

use std::collections::BTreeMap;

use anyhow::Result;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::outcome::Reading;
use coroner_tests::report::{say, timed};
use futures::future::join_all;

use crate::stand::{END, Mode, Stand, alone};
use coroner_tests::containerd::{STOCK, WRAPPED};

/// Another number of runs: the long form is 300.
const RUNS_VARIABLE: &str = "CORONER_TEST_RUNS";
/// Started at once: alone, a stock shim arms its watch in time nearly always.
const AT_ONCE: usize = 10;
/// 8 MB hold runc's own start, which takes 6, and nothing more.
const LIMIT_MB: i64 = 8;

#[derive(Debug, Default)]
struct Arm {
    outcomes: BTreeMap<(Reading, Reading), usize>,
    not_started: usize,
    missed: usize,
    first_wrong: usize,
}

impl Arm {
    async fn run(&mut self, cri: &mut Cri, pod: &Pod, names: &[String]) -> Result<()> {
        let runs = names.iter().map(|name| run(cri.clone(), pod, name));
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
        for ((container, first), last) in containers.iter().zip(firsts).zip(finals) {
            cri.remove(container).await?;
            self.missed += usize::from(!last.is_oom());
            self.first_wrong += usize::from(!first.is_oom());
            *self.outcomes.entry((first, last)).or_default() += 1;
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let outcomes =
            self.outcomes.iter().map(|((first, last), count)| format!("{count} x {first} -> {last}"));
        let outcomes = outcomes.collect::<Vec<_>>().join(", ");
        let Self { missed, not_started, first_wrong, .. } = self;
        format!(
            "{missed} missed for good, {first_wrong} wrong at first, {not_started} not started; {outcomes}"
        )
    }
}

async fn run(mut cri: Cri, pod: &Pod, name: &str) -> Result<Result<(Container, Reading), Container>> {
    let container = cri.create(pod, name, LIMIT_MB, "self 64").await?;
    // At this limit runc itself may be killed, and what CRI then shows is no reading of ours.
    if cri.start(&container).await.is_err() {
        return Ok(Err(container));
    }
    let first = cri.first_reading(&container, END).await?;
    Ok(Ok((container, first)))
}

async fn instant(mode: Mode) -> Arm {
    let runs = std::env::var(RUNS_VARIABLE).map_or(crate::RUNS, |runs| runs.parse().unwrap());
    let mut stand = Stand::start(mode).await.unwrap();
    let (mut stock, mut ours) = (Arm::default(), Arm::default());
    let pods = [
        stand.cri.run_pod_as(&stand.containerd, "stock", STOCK).await.unwrap(),
        stand.cri.run_pod_as(&stand.containerd, "ours", WRAPPED).await.unwrap(),
    ];
    for (block, done) in (0..runs).step_by(AT_ONCE).enumerate() {
        let names: Vec<_> = (done..runs.min(done + AT_ONCE)).map(|run| format!("instant-{run}")).collect();
        for is_stock in [block % 2 == 0, block % 2 != 0] {
            let (arm, pod) = if is_stock { (&mut stock, &pods[0]) } else { (&mut ours, &pods[1]) };
            arm.run(&mut stand.cri, pod, &names).await.unwrap();
        }
    }
    say(format_args!("{runs} runs, stock:   {}", stock.summary()));
    say(format_args!("{runs} runs, {}: {}", mode.name(), ours.summary()));
    assert_eq!(ours.missed, 0, "kills missed for good");
    ours
}

#[tokio::test]
async fn an_instant_oom_is_not_missed_behind_the_wrapper() {
    let _turn = alone().await;
    let _timed = timed("an_instant_oom_is_not_missed_behind_the_wrapper");
    instant(Mode::Wrapped).await;
}

#[tokio::test]
async fn an_instant_oom_is_right_at_the_first_reading_behind_the_proxy() {
    let _turn = alone().await;
    let _timed = timed("an_instant_oom_is_right_at_the_first_reading_behind_the_proxy");
    let ours = instant(Mode::Proxy).await;
    assert_eq!(ours.first_wrong, 0, "no hold expires on a machine that has nothing else to do");
}
