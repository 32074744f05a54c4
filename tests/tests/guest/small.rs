//! What an agent takes in a guest, and how often it wakes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coroner_proto::agent::{NextSignalsRequest, Signal, SnapshotRequest, signal::Event};
use coroner_tests::report::print;
use coroner_tests::vm::{Vm, static_agent};
use ttrpc::context;

use super::reader::{PATIENCE, Reader};

/// KiB of anonymous memory the agent may take. The evidence of the last 16 kills, which it keeps,
/// is some 80 of them.
const MEMORY: u64 = 384;
/// Times it may go to sleep by itself in a minute with nothing to do.
const SWITCHES: u64 = 2;
/// The time without signals, in seconds.
const IDLE: u64 = 60;
/// Containers that come and go after each other, in rounds: three in the gate, and
/// `CORONER_TEST_CHURN` in the long form. The guest has some thirty containers a second.
const ROUNDS: usize = 3;
const EACH: usize = 1000;

fn rounds() -> usize {
    let text = std::env::var("CORONER_TEST_CHURN").ok();
    text.map_or(ROUNDS, |text| text.parse().unwrap())
}

fn anonymous(vm: &Vm) -> u64 {
    // It gives back what it no longer uses a second after the last event, this shell's own
    // processes included.
    std::thread::sleep(Duration::from_secs(2));
    let line = vm.must("grep ^Anonymous: /proc/$(pidof agent)/smaps_rollup").unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn agent_memory_is_unchanged_after_thousands_of_signals() {
    let rounds = rounds();
    let vm = Vm::boot("exec /guest serve 9000", |_| Ok(())).await.unwrap();
    vm.must("/agent run --listen vsock://-1:1030 --root reaped -- /guest serve 9001 > /tmp/agent.log 2>&1 &")
        .unwrap();
    let mut reader = Reader::connect(&vm.address(1030)).await;
    vm.listens(9001).await.unwrap();
    print(format_args!("anonymous without containers: {} KiB", anonymous(&vm)));
    vm.must_at(
        9001,
        "i=0; while [ $i -lt 50 ]; do /guest run reaped p$i -- /oomtest pause; i=$((i+1)); done",
    )
    .unwrap();
    reader.read(0).await;
    print(format_args!("with 50 containers: {} KiB", anonymous(&vm)));
    let begun = Instant::now();
    let churned = std::thread::spawn(move || {
        for round in 0..rounds {
            vm.must_at(9001, &format!("/guest churn reaped churn-{round} {EACH}")).unwrap();
        }
        vm
    });
    while !churned.is_finished() {
        reader.read(200).await;
    }
    let vm = churned.join().unwrap();
    reader.until("the last exits", |it| it.signals.len() >= rounds * EACH).await;
    let reported: HashMap<&str, Vec<&Signal>> =
        reader.signals.iter().fold(HashMap::new(), |mut reported, signal| {
            reported.entry(signal.container_id.as_str()).or_insert_with(Vec::new).push(signal);
            reported
        });
    for (round, at) in (0..rounds).flat_map(|round| (0..EACH).map(move |at| (round, at))) {
        let id = format!("churn-{round}-{at}");
        let [signal] = reported[id.as_str()].as_slice() else { panic!("{id}: {:?}", reported[id.as_str()]) };
        let Some(Event::Exited(exited)) = &signal.event else { panic!("{signal:?}") };
        let unknown = exited.unknown_because.as_str();
        assert_eq!(
            (exited.status, exited.signal),
            (Some(u32::try_from(at % 256).unwrap()), None),
            "{signal:?}"
        );
        // The runtime removed the cgroup at once: whether the last counter could be read is a
        // matter of luck, and reported.
        assert!(unknown.is_empty() || unknown == "cgroup gone", "{signal:?}");
    }
    // What was read is acknowledged with the next call.
    reader.read(0).await;
    let (signals, took) = (rounds * EACH, begun.elapsed().as_secs());
    print(format_args!("after {signals} signals in {took} s: {} KiB", anonymous(&vm)));

    // One frame past the limit: its link is closed, and nothing of it is kept.
    let oversized = Reader::connect(&vm.address(1030)).await;
    let request = SnapshotRequest { after_container_id: "x".repeat(3 << 20), ..SnapshotRequest::default() };
    assert!(oversized.client.snapshot(context::with_duration(PATIENCE), &request).await.is_err());
    let whole =
        reader.client.snapshot(context::with_duration(PATIENCE), &SnapshotRequest::default()).await.unwrap();
    assert!(whole.containers.len() >= 50, "the other link lives");
    let memory = anonymous(&vm);
    let size = std::fs::metadata(static_agent().unwrap()).unwrap().len();
    print(format_args!("and one refused frame: {memory} KiB; the binary is {} KiB", size / 1024));

    let request = NextSignalsRequest {
        stream_id: reader.hello.stream_id.clone(),
        after_seq: u64::MAX - 1,
        wait_ms: 300_000,
        ..NextSignalsRequest::default()
    };
    let counting = format!("/guest switches $(pidof agent) {IDLE}");
    // The guest must outlive the poll.
    let counted =
        tokio::task::spawn_blocking(move || vm.must(&counting).map(|counted| (vm, counted)).unwrap());
    let poll = reader.client.next_signals(context::with_duration(Duration::from_secs(310)), &request);
    let (_vm, counted) = tokio::select! {
        ended = poll => panic!("the poll ended early: {ended:?}"),
        counted = counted => counted.unwrap(),
    };
    let slept: u64 = counted.trim().parse().unwrap();
    print(format_args!("idle with a poll of 300 s open: {slept} voluntary context switches in {IDLE} s"));
    assert!(memory <= MEMORY, "{memory} KiB of anonymous memory, over {MEMORY}");
    assert!(slept <= SWITCHES, "{slept} voluntary context switches, over {SWITCHES}");
}
