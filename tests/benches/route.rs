//! How long a signal takes through the router, socket to socket: with the bundled policy, and with
//! none.

mod paired;
mod signal_path;

use std::sync::Arc;

use coroner_policy::{Host, Policy, PolicyManager};
use paired::Pairs;
use signal_path::running::Places;
use signal_path::{EXITS, RUN, SignalPath};
use tokio::runtime::Runtime;

/// Pairs of single kills. A kill takes as long as a core takes to wake, and that varies.
const KILLS: u64 = 401;
/// Pairs of runs.
const RUNS: u64 = 61;
/// Pairs of bursts: some 300,000 exits for each variant, in bursts short enough that both of a pair
/// meet the same machine.
const BURSTS: u64 = 61;
/// Pairs before anything is measured: connections are made, and policies started.
const WARM_UP: u64 = 20;

fn main() {
    // As `coroner run` has it. The peers have the main thread to themselves, as processes of their
    // own would.
    let routers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let routers = routers.expect("a runtime can be made");
    let peers = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let peers = peers.expect("a runtime can be made");
    let settings = Places::new().config("beside").policies;
    let host = Arc::new(Host::new(settings).expect("the engine runs on this machine"));
    let manager = PolicyManager::start(Arc::clone(&host));
    assert_eq!(manager.refused(), []);
    let policies = &manager.active_chain().now().policies;
    let comparisons = peers.block_on(async {
        let (mut native, mut wasm) = pair(&routers, &host, policies, "beside").await;
        let single = single(&mut native, &mut wasm).await;
        let run = run(&mut native, &mut wasm).await;
        native.end().await;
        wasm.end().await;
        let (mut native, mut wasm) = pair(&routers, &host, policies, "sole").await;
        let burst = burst(&mut native, &mut wasm).await;
        native.end().await;
        wasm.end().await;
        [single, run, burst]
    });
    paired::print(
        "agent's socket to containerd's, with 00-kubernetes in wasm against native, alternating",
        "wasm",
        &comparisons,
    );
}

async fn pair(
    routers: &Runtime,
    host: &Arc<Host>,
    policies: &[Arc<Policy>],
    mode: &str,
) -> (SignalPath, SignalPath) {
    (
        SignalPath::start(routers, host, &[], mode, true).await,
        SignalPath::start(routers, host, policies, mode, true).await,
    )
}

/// Single kills, each emitted when the router is idle after the one before.
async fn single(native: &mut SignalPath, wasm: &mut SignalPath) -> Pairs {
    for _ in 0..WARM_UP {
        native.kill().await;
        wasm.kill().await;
    }
    let mut pairs = Pairs::new("a kill after quiet", "no policies");
    for _ in 0..KILLS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.kill().await;
            (native, wasm.kill().await)
        } else {
            let wasm = wasm.kill().await;
            (native.kill().await, wasm)
        };
        pairs.add(native, wasm, 1);
    }
    pairs
}

/// Kills one at a time, each emitted as soon as containerd has the one before.
async fn run(native: &mut SignalPath, wasm: &mut SignalPath) -> Pairs {
    let mut pairs = Pairs::new("a kill right after another", "no policies");
    for _ in 0..RUNS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.run().await;
            (native, wasm.run().await)
        } else {
            let wasm = wasm.run().await;
            (native.run().await, wasm)
        };
        pairs.add(native, wasm, RUN);
    }
    pairs
}

/// Exits as fast as they are taken.
async fn burst(native: &mut SignalPath, wasm: &mut SignalPath) -> Pairs {
    native.exits().await;
    wasm.exits().await;
    let mut pairs = Pairs::new(format!("each of {EXITS} exits at once"), "no policies");
    for _ in 0..BURSTS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.exits().await;
            (native, wasm.exits().await)
        } else {
            let wasm = wasm.exits().await;
            (native.exits().await, wasm)
        };
        pairs.add(native, wasm, EXITS);
    }
    pairs
}
