//! Everything breaks at once while containers die: nothing is lost, nothing overtakes, nothing is told wrongly, and repeats are accounted for.
//!
//! A seed decides when; it is printed, and `CORONER_CHAOS_SEED` gives it. `CORONER_CHAOS_KILLS` is how often the router is killed: 60 in the gate, in four
//! minutes in which containerd is away for 5, 30 and 120 s. With fewer, in less time, it is away only once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod absence;
mod bare;
mod check;
mod explained;
mod faults;
mod life;
mod link;
mod wire;
mod world;

use std::rc::Rc;

use coroner_tests::report::{say, timed};
use tokio::task::{JoinSet, LocalSet};

use faults::Plan;
use world::World;

/// Containers at a time: half of them pods', half of nobody's.
const EACH: usize = 10;

#[tokio::test]
async fn nothing_is_lost_whatever_breaks() {
    LocalSet::new().run_until(run()).await;
}

async fn run() {
    let _timed = timed("nothing_is_lost_whatever_breaks");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CORONER_CHAOS_SEED").unwrap_or_else(rand::random);
    let plan = Plan::new(seed, number("CORONER_CHAOS_KILLS").unwrap_or(60));
    say(format_args!("seed {seed}: {plan}"));
    let world = World::start().await.unwrap();

    let mut lives = JoinSet::new();
    for slot in 0..EACH {
        lives.spawn_local(life::pods(Rc::clone(&world), slot, seed));
        lives.spawn_local(life::bare(Rc::clone(&world), slot, seed));
    }
    faults::run(&world, &plan).await;
    world.over();
    while let Some(ended) = lives.join_next().await {
        ended.unwrap();
    }
    world.settle().await;
    check::all(&world).await;
}
