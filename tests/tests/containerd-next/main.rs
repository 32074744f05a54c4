//! The suite `wrapped` in short form on a later containerd: Debian trixie's, 1.7; sid's, 2.x, with `CORONER_TEST_RELEASE=sid`, by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

#[path = "../wrapped/absence.rs"]
mod absence;
#[path = "../wrapped/causal.rs"]
mod causal;
#[path = "../wrapped/instant.rs"]
mod instant;
#[path = "../wrapped/proxied.rs"]
mod proxied;
#[path = "../wrapped/stand.rs"]
mod stand;
#[path = "../wrapped/truth.rs"]
mod truth;

use coroner_tests::containerd::Release;

/// Runs of the case `instant` in each arm.
const RUNS: usize = 20;

fn release() -> Release {
    match std::env::var("CORONER_TEST_RELEASE").as_deref() {
        Ok("sid") => Release::Sid,
        Ok("trixie") | Err(_) => Release::Trixie,
        Ok(other) => panic!("CORONER_TEST_RELEASE is trixie or sid, not {other}"),
    }
}
