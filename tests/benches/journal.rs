//! What the journal adds to the latency of a signal, and how many signals a second it lets through.

mod paired;
#[expect(dead_code, reason = "shared with another benchmark, which uses the rest")]
mod signal_path;

use std::sync::Arc;

use coroner_policy::Host;
use paired::Pairs;
use signal_path::running::Places;
use signal_path::{EXITS, RUN, SignalPath};

/// Pairs of each kind.
const RUNS: u64 = 41;
const BURSTS: u64 = 41;

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn main() {
    let routers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let routers = routers.expect("a runtime can be made");
    let peers = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let peers = peers.expect("a runtime can be made");
    let host = Arc::new(Host::new(Places::new().config("sole").policies).expect("the engine runs here"));
    let (run, burst, fastest) = peers.block_on(async {
        let mut without = SignalPath::start(&routers, &host, &[], "sole", false).await;
        let mut with = SignalPath::start(&routers, &host, &[], "sole", true).await;
        let mut run = Pairs::new("a kill right after another", "no journal");
        for _ in 0..RUNS {
            let (baseline, other) = if run.baseline_first() {
                let baseline = without.run().await;
                (baseline, with.run().await)
            } else {
                let other = with.run().await;
                (without.run().await, other)
            };
            run.add(baseline, other, RUN);
        }
        let mut burst = Pairs::new(format!("each of {EXITS} exits at once"), "no journal");
        let mut took = Vec::new();
        for _ in 0..BURSTS {
            let (baseline, other) = if burst.baseline_first() {
                let baseline = without.exits().await;
                (baseline, with.exits().await)
            } else {
                let other = with.exits().await;
                (without.exits().await, other)
            };
            burst.add(baseline, other, EXITS);
            took.push(other);
        }
        without.end().await;
        with.end().await;
        took.sort();
        (run, burst, took[took.len() / 2])
    });
    paired::print(
        "agent's socket to containerd's, with the journal against without, alternating",
        "journal",
        &[run, burst],
    );
    println!("  {:.0} signals a second with the journal", f64::from(EXITS) / fastest.as_secs_f64());
}
