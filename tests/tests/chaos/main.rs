//! Everything breaks at once while containers die: nothing is lost, nothing overtakes, nothing is
//! reported wrongly, and repeats are accounted for.
//!
//! A seed decides when; it is printed, and `CORONER_CHAOS_SEED` sets it. `CORONER_CHAOS_KILLS` is
//! how often the router is killed: 30 in the gate, in two minutes in which containerd is away for
//! 5 and 30 s. The long form has 60, in four minutes, and containerd is away for 120 s as well.
//! What is only a matter of order is the simulation's, in thousands of runs: this suite has the
//! parts that the simulation lacks.

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

use coroner_tests::report::{print, timed};
use tokio::task::{JoinSet, LocalSet};

use faults::Plan;
use world::World;

/// Containers at a time: half of them pods', half of nobody's.
const EACH: usize = 10;
/// How often the router is killed in the gate.
const KILLS: u64 = 30;

#[tokio::test]
async fn signals_under_random_faults_are_never_lost() {
    LocalSet::new().run_until(run()).await;
}

async fn run() {
    let _timed = timed("signals_under_random_faults_are_never_lost");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CORONER_CHAOS_SEED").unwrap_or_else(rand::random);
    let plan = Plan::new(seed, number("CORONER_CHAOS_KILLS").unwrap_or(KILLS));
    print(format_args!("seed {seed}: {plan}"));
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
    world.wait_quiet().await;
    check::all(&world).await;
}
