//! Containers, one after the other in each slot, each with an end of its own.

use std::rc::Rc;
use std::time::Duration;

use coroner_tests::cri::Container;
use coroner_tests::wait::until;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::world::{Life, World};

/// An end is reported within seconds once all is well again; containerd is away for two minutes.
const END: Duration = Duration::from_secs(300);

/// What the program does, whether the kernel kills for it, and the status.
const ENDS: [(&str, bool, u32); 6] = [
    ("self 64", true, 137),
    ("child 64 1 0", true, 1),
    ("child 64 0 300", true, 0),
    ("exit 0", false, 0),
    ("exit 1", false, 1),
    ("exit 137", false, 137),
];

fn chance(seed: u64, slot: usize, kind: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ (slot as u64) << 8 ^ kind << 32)
}

fn pick(random: &mut StdRng) -> ((&'static str, bool, u32), u64) {
    (ENDS[random.random_range(0..ENDS.len())], random.random_range(300..1500))
}

/// Of a pod, started by containerd: mode `beside`.
pub(crate) async fn pods(world: Rc<World>, slot: usize, seed: u64) {
    let mut random = chance(seed, slot, 1);
    let mut cri = world.cri.clone();
    let mut up = world.up.subscribe();
    for turn in 0.. {
        up.wait_for(|up| *up || world.is_over()).await.unwrap();
        if world.is_over() {
            return;
        }
        let ((action, killed, status), delay) = pick(&mut random);
        let name = format!("pod-{slot}-{turn}");
        let Ok(container) = cri.create(&world.pod, &name, 32, &format!("delay {delay} {action}")).await
        else {
            continue;
        };
        let started = cri.start(&container).await.is_ok();
        if !started {
            // It may run or not: containerd was stopped over it.
            continue;
        }
        let life =
            Life { id: container.id.clone(), action, killed, status, container: Some(container.clone()) };
        world.lives.lock().unwrap().push(life);
        ended(&world, &container).await;
    }
}

/// Polls CRI, which may be away, until the container has ended.
async fn ended(world: &World, container: &Container) {
    let mut cri = world.cri.clone();
    let ended = until("an end", END, async || {
        let ended = cri.reading(container).await.is_ok_and(|reading| reading.is_some());
        Ok((ended || cri.has_lost(container).await).then_some(()))
    });
    if let Err(error) = ended.await {
        panic!("{}: {error}: {}", container.name, cri.shown(container).await);
    }
}

/// Containers without another publisher: mode `sole`.
pub(crate) async fn bare(world: Rc<World>, slot: usize, seed: u64) {
    let mut random = chance(seed, slot, 2);
    for turn in 0.. {
        if world.is_over() {
            return;
        }
        let ((action, killed, status), delay) = pick(&mut random);
        let id = format!("bare-{slot}-{turn}");
        let mut child = world.root.run(&id, &format!("delay {delay} {action}")).unwrap();
        let life = Life { id: id.clone(), action, killed, status, container: None };
        world.lives.lock().unwrap().push(life);
        until("a program to end", END, async || Ok(child.try_wait()?)).await.unwrap();
        // A runtime removes the cgroup once the exit was reported.
        until("a container's exit", END, async || Ok(world.ledger.has_exit(&id).then_some(())))
            .await
            .unwrap();
        until("a cgroup to be empty", END, async || Ok(world.root.remove(&id).then_some(()))).await.unwrap();
    }
}
