//! What breaks, and when.

use std::fmt;
use std::time::Duration;

use coroner_tests::binary;
use coroner_tests::report::print;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

use crate::world::World;

/// Seconds that containerd is away: after which time of being there.
const AWAY: [(u64, u64); 3] = [(12, 5), (20, 30), (12, 120)];
/// Of each run of the router, on average.
const LIFE: Duration = Duration::from_millis(3800);

/// Kills from which on containerd is away a second time, for longer, and a third, for long.
const SECOND: usize = 30;
const LONG: usize = 60;

/// When the router is killed, from the beginning on, and how often containerd is away.
pub(crate) struct Plan {
    kills: Vec<Duration>,
    away: &'static [(u64, u64)],
    seed: u64,
}

impl Plan {
    pub(crate) fn new(seed: u64, kills: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let whole = LIFE * u32::try_from(kills).unwrap();
        let mut kills: Vec<Duration> = (0..kills).map(|_| whole.mul_f64(random.random())).collect();
        kills.sort();
        let times = 1 + usize::from(kills.len() >= SECOND) + usize::from(kills.len() >= LONG);
        Self { kills, away: &AWAY[..times], seed }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.kills.last().copied().unwrap_or_default();
        write!(out, "the router is killed {} times in {} s", self.kills.len(), whole.as_secs())
    }
}

/// Breaks all of it until the plan is over.
pub(crate) async fn run(world: &World, plan: &Plan) {
    tokio::select! {
        _ = async { tokio::join!(routers(world, plan), containerds(world, plan)) } => {}
        () = links(world, StdRng::seed_from_u64(plan.seed ^ 1)) => {}
        () = policies(world) => {}
        () = disks(world) => {}
    }
}

async fn routers(world: &World, plan: &Plan) {
    let begun = Instant::now();
    for after in &plan.kills {
        sleep_until(begun + *after).await;
        let mut router = world.router.lock().await;
        let died = std::time::Instant::now();
        router.kill().unwrap();
        router.start_again().await.unwrap();
        world.back(died);
    }
}

async fn containerds(world: &World, plan: &Plan) {
    for (at, (there, away)) in plan.away.iter().copied().enumerate() {
        sleep(Duration::from_secs(there)).await;
        let mut containerd = world.containerd.lock().await;
        world.up.send_replace(false);
        let died = std::time::Instant::now();
        if at % 2 == 0 {
            containerd.kill().unwrap()
        } else {
            containerd.stop().await.unwrap()
        }
        sleep(Duration::from_secs(away)).await;
        containerd.start_again().await.unwrap();
        world.back(died);
        world.up.send_replace(true);
        print(format_args!("containerd was away for {away} s"));
    }
}

async fn links(world: &World, mut random: StdRng) {
    loop {
        sleep(Duration::from_millis(random.random_range(200..4000))).await;
        // No link uses it while the router is dead.
        drop(world.cuts.send(()));
    }
}

/// One more policy comes and goes; it rules as the built-in one does.
async fn policies(world: &World) {
    let bytes = std::fs::read(binary::bundled_policy("kubernetes").unwrap()).unwrap();
    loop {
        sleep(Duration::from_secs(7)).await;
        let router = world.router.lock().await;
        router.drop_in("20-again.wasm", &bytes).unwrap();
        drop(router);
        sleep(Duration::from_secs(7)).await;
        std::fs::remove_file(world.router.lock().await.policies().join("20-again.wasm")).unwrap();
    }
}

async fn disks(world: &World) {
    loop {
        sleep(Duration::from_secs(25)).await;
        world.fill();
        sleep(Duration::from_secs(6)).await;
        world.make_room();
    }
}
