//! The suite `wrapped` in short form on the newest containerd: its shims answer `start` in
//! protobuf.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

#[path = "../wrapped/short.rs"]
mod short;

use coroner_tests::containerd::Release;

/// Runs of the case `instant` in each variant.
const RUNS: usize = 20;

fn release() -> Release {
    Release::newest()
}
