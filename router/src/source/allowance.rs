//! How much a guest may send: what is beyond it waits in the guest, but for pressure, which is dropped.

use coroner_proto::bucket::Bucket;
use tokio::time::{Instant, sleep};

/// Kills, exits and the like: how many a second, and at once. Each costs the router some ten microseconds of a worker, a ruling, an audit record: a
/// guest could otherwise keep the workers busy for everybody else. What is refused costs as much: to refuse a million a second would take a processor.
const LIFECYCLE: (u32, u32) = (500, 1000);
/// A container not heard of before costs as many: it is asked for at containerd, and remembered.
const NEW: u32 = 10;
/// Pressure: how many a second, and at once. An agent of ours tells one a second for each line of each container; a flood of it must delay
/// no kill, so it has an allowance of its own.
const PRESSURE: (u32, u32) = (20, 100);
/// Containers of one guest that live at once. A guest could otherwise fill the router's maps with a million names.
pub(super) const CONTAINERS: usize = 1024;

/// What one guest may still send.
#[derive(Debug)]
pub(super) struct Allowance {
    lifecycle: Bucket,
    pressure: Bucket,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self {
            lifecycle: Bucket::new(LIFECYCLE.0, LIFECYCLE.1),
            pressure: Bucket::new(PRESSURE.0, PRESSURE.1),
        }
    }

    /// Waits until one more lifecycle signal may come.
    pub(super) async fn lifecycle(&mut self, new: bool) {
        let cost = if new { NEW } else { 1 };
        while let Err(wait) = self.lifecycle.take(cost, Instant::now()) {
            sleep(wait).await;
        }
    }

    /// Whether one more pressure signal may come now.
    pub(super) fn pressure(&mut self) -> bool {
        self.pressure.take(1, Instant::now()).is_ok()
    }
}
