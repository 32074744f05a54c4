//! Stock shims behind the router, on a real containerd and a real runc, in one containerd with
//! stock pods.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod absence;
mod causal;
mod counted;
mod cost;
mod crio;
mod dead;
mod execs;
mod front;
mod instant;
mod parallel;
mod proxied;
#[path = "../routing/shim.rs"]
mod shim;
mod fixture;
mod truth;
mod written;

use coroner_tests::containerd::Release;

/// Runs of the case `instant` in each variant.
const RUNS: usize = 60;

fn release() -> Release {
    Release::Host
}
