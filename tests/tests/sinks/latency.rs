//! The latency of an exit to containerd while other sinks hang, measured within one run.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coroner_tests::report::print;
use coroner_tests::scratch::Scratch;
use rustix::fs::{CWD, Mode, mkfifoat};

use super::fixture::Fixture;
use super::receiver::Receiver;

/// Exits of each half, one after another.
const EXITS: usize = 1000;

async fn half(fixture: &mut Fixture, name: &str) -> Vec<Duration> {
    let mut took = Vec::new();
    for at in 0..EXITS {
        let start = Instant::now();
        fixture.exit(&format!("{name}-{at}"));
        fixture.took.recv().await.expect("containerd has every exit");
        took.push(start.elapsed());
    }
    fixture.dealt_with().await;
    took.sort_unstable();
    took
}

fn print_times(what: &str, took: &[Duration]) {
    let at = |share: usize| took[took.len() * share / 1000].as_secs_f64() * 1000.0;
    let (half, most, nearly) = (at(500), at(950), at(990));
    print(format_args!("exit to containerd, {what}: p50 {half:.2} ms, p95 {most:.2} ms, p99 {nearly:.2} ms"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_reach_containerd_while_webhook_hangs_and_disk_is_slow() {
    let scratch = Scratch::new().unwrap();
    let slow = scratch.path("slow");
    mkfifoat(CWD, &slow, Mode::RWXU).unwrap();
    let receiver = Receiver::clear(&[]).await;
    let sinks = format!(
        r#"
        [[sink]]
        name = "hook"
        type = "webhook"
        url = "http://{}/events"
        queue = 64
        timeout = "60s"
        [[sink]]
        name = "disk"
        type = "jsonl"
        path = "@DIR@/slow"
        queue = 64
        [[route]]
        topics = ["/tasks/exit", "audit"]
        sinks = ["hook", "disk"]
        "#,
        receiver.address
    );
    let mut fixture = Fixture::sole(scratch, &sinks).await;
    // The disk is a pipe: as slow as its reader.
    let paused = Arc::new(AtomicBool::new(false));
    let pause = Arc::clone(&paused);
    let reader = std::thread::spawn(move || {
        let mut pipe = File::open(slow).unwrap();
        let mut buffer = vec![0; 1 << 16];
        while pipe.read(&mut buffer).unwrap() > 0 {
            while pause.load(Ordering::SeqCst) {
                std::thread::park();
            }
        }
    });
    // The first exits find everything cold.
    half(&mut fixture, "warm").await;
    let undisturbed = half(&mut fixture, "undisturbed").await;
    receiver.answer(false);
    paused.store(true, Ordering::SeqCst);
    fixture.exits("filler", 500).await;
    for _ in 0..500 {
        fixture.took.recv().await.unwrap();
    }
    for sink in ["hook", "disk"] {
        fixture.sink(sink, |it| it["dropped"]["full"].as_u64() >= Some(1)).await;
    }
    let disturbed = half(&mut fixture, "disturbed").await;
    print_times("undisturbed", &undisturbed);
    print_times("webhook hung and its queue full, disk slow", &disturbed);

    receiver.answer(true);
    paused.store(false, Ordering::SeqCst);
    reader.thread().unpark();
    fixture.router.stop().await.unwrap();
    reader.join().unwrap();
}
