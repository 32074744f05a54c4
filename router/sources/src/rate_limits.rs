//! Rate limits of a guest. Lifecycle signals above the limit wait in the guest (back-pressure);
//! pressure above it is dropped.

use coroner_transport::TokenBucket;
use tokio::time::{Instant, sleep};

/// Lifecycle signals (kills, exits): rate per second, and burst. Each costs the router some ten
/// microseconds of a worker, a ruling and an audit record. Without the limit a guest could keep the
/// workers busy for all others. A refused signal costs as much: refusing a million a second would
/// take a whole processor.
const LIFECYCLE: (u32, u32) = (500, 1000);
/// Cost of a signal of a new container: it causes a request to containerd and an entry in memory.
const NEW: u32 = 10;
/// Pressure signals: rate per second, and burst. The agent sends one a second for each line of each
/// container. The bucket is separate, so that a flood of pressure does not delay a kill.
const PRESSURE: (u32, u32) = (20, 100);
/// Running containers of one guest. A guest could otherwise fill the router's maps with a million
/// names.
pub(super) const CONTAINERS: usize = 1024;

/// The token buckets of one guest.
#[derive(Debug)]
pub(super) struct RateLimits {
    lifecycle: TokenBucket,
    pressure: TokenBucket,
}

impl RateLimits {
    pub(super) fn new() -> Self {
        Self {
            lifecycle: TokenBucket::new(LIFECYCLE.0, LIFECYCLE.1),
            pressure: TokenBucket::new(PRESSURE.0, PRESSURE.1),
        }
    }

    /// Waits until one more lifecycle signal is allowed.
    pub(super) async fn lifecycle(&mut self, new: bool) {
        let cost = if new { NEW } else { 1 };
        while let Err(wait) = self.lifecycle.take(cost, Instant::now()) {
            sleep(wait).await;
        }
    }

    /// Whether one more pressure signal is allowed now.
    pub(super) fn pressure(&mut self) -> bool {
        self.pressure.take(1, Instant::now()).is_ok()
    }
}
