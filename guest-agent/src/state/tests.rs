use std::collections::HashMap;

use coroner_proto::agent;
use protobuf::Message as _;

use super::read::SignalBatch;
use super::*;

const ALL: usize = usize::MAX / 4;

fn kill(total: u64) -> OomKill {
    OomKill { total, ..OomKill::default() }
}

fn exited(status: u32) -> Exited {
    Exited { status: Some(status), ..Exited::default() }
}

fn decode(signals: &[Vec<u8>]) -> Vec<Signal> {
    signals.iter().map(|bytes| Signal::parse_from_bytes(bytes).unwrap()).collect()
}

fn read(state: &State, after: u64) -> Vec<(u64, String)> {
    let signals = decode(&state.next(after, ALL, ALL).signals);
    signals.iter().map(|it| (it.seq, describe(it))).collect()
}

fn describe(signal: &Signal) -> String {
    match signal.event.as_ref().unwrap() {
        signal::Event::OomKill(kill) => {
            format!("{} kill {} +{}", signal.container_id, kill.total, kill.added)
        }
        signal::Event::Exited(exit) => {
            let exec = signal.exec_id.as_ref().map_or(String::new(), |exec| format!("/{exec}"));
            format!("{}{exec} exit {:?}", signal.container_id, exit.status)
        }
        other => panic!("{other:?}"),
    }
}

fn assert_reads(state: &State, after: u64, expect: &[(u64, &str)]) {
    let read = read(state, after);
    let read: Vec<(u64, &str)> = read.iter().map(|(seq, text)| (*seq, text.as_str())).collect();
    assert_eq!(read, expect);
}

#[test]
fn kill_of_a_group_that_replaces_an_unacknowledged_one_stays_a_group() {
    let group = |state: &State| {
        let signals = decode(&state.next(0, ALL, ALL).signals);
        let Some(signal::Event::OomKill(kill)) = &signals[0].event else { panic!("{signals:?}") };
        (kill.total, kill.group)
    };
    let grouped = |total, group| OomKill { group: Some(group), ..kill(total) };
    let mut state = State::default();
    state.add("a", &Arc::from("/a"), Some(0));
    for (total, of_group) in [(1, false), (30, true), (400, false)] {
        state.kill("a", grouped(total, of_group), Timestamp::default());
    }
    assert_eq!(group(&state), (400, Some(true)));
}

#[test]
fn second_kill_replaces_first_under_higher_seq() {
    let mut state = State::default();
    assert!(state.add("a", &Arc::from("/a"), Some(0)));
    state.kill("a", kill(1), Timestamp::default());
    state.kill("a", kill(2), Timestamp::default());
    state.exit("a", None, exited(1), Timestamp::default());
    assert_reads(&state, 0, &[(2, "a kill 2 +2"), (3, "a exit Some(1)")]);
    assert_reads(&state, 2, &[(3, "a exit Some(1)")]);
    assert_reads(&state, 3, &[]);
    assert_reads(&state, u64::MAX, &[]);
}

#[test]
fn added_counts_from_last_acknowledged_total() {
    let mut state = State::default();
    state.add("a", &Arc::from("/a"), Some(5));
    assert_reads(&state, 0, &[]);
    state.kill("a", kill(6), Timestamp::default());
    assert_reads(&state, 0, &[(1, "a kill 6 +1")]);
    // Read but not acknowledged.
    state.kill("a", kill(7), Timestamp::default());
    assert_reads(&state, 1, &[(2, "a kill 7 +2")]);
    state.ack(2);
    // A second reader still reads the acknowledged kill.
    assert_reads(&state, 0, &[(2, "a kill 7 +2")]);
    state.kill("a", kill(9), Timestamp::default());
    assert_reads(&state, 2, &[(3, "a kill 9 +2")]);
}

#[test]
fn ack_above_latest_seq_is_clamped() {
    let mut state = State::default();
    state.add("a", &Arc::from("/a"), Some(0));
    state.ack(u64::MAX);
    state.kill("a", kill(1), Timestamp::default());
    state.kill("a", kill(2), Timestamp::default());
    assert_reads(&state, 0, &[(2, "a kill 2 +2")]);
}

#[test]
fn exec_exit_has_its_own_slot() {
    let mut state = State::default();
    state.add("a", &Arc::from("/a"), None);
    state.exit("a", Some("x"), exited(3), Timestamp::default());
    assert!(!state.has_exited("a"));
    state.exit("a", None, exited(0), Timestamp::default());
    assert!(state.has_exited("a"));
    assert_reads(&state, 0, &[(1, "a/x exit Some(3)"), (2, "a exit Some(0)")]);
    for exec in 0..2 * KEPT_EXECS {
        state.exit("a", Some(&exec.to_string()), exited(0), Timestamp::default());
    }
    assert_eq!(read(&state, 0).len(), KEPT_EXECS + 1);
    assert_eq!(state.next(0, ALL, ALL).lost, KEPT_EXECS as u64 + 1);
    assert_eq!(state.next(state.seq(), ALL, ALL).lost, 0);
}

#[test]
fn departed_kept_up_to_limit_then_counted_as_lost() {
    let mut state = State::default();
    let more = 10;
    for n in 0..KEPT_UNACKED + more {
        let id = format!("c{n}");
        state.add(&id, &Arc::from("/c"), Some(0));
        state.exit(&id, None, exited(0), Timestamp::default());
        state.depart(&id);
    }
    let SignalBatch { signals, lost, .. } = state.next(0, ALL, ALL);
    assert_eq!((signals.len(), lost), (KEPT_UNACKED, more as u64));
    assert_eq!(decode(&signals)[0].container_id, format!("c{more}"));
    // A reader that has read the dropped ones has lost nothing.
    assert_eq!(state.next(more as u64, ALL, ALL).lost, 0);
    assert_eq!(state.next(more as u64 - 1, ALL, ALL).lost, 1);
    state.ack(state.seq());
    let SignalBatch { signals, lost, .. } = state.next(0, ALL, ALL);
    assert_eq!((signals.len(), lost), (KEPT_ACKED, (KEPT_UNACKED + more - KEPT_ACKED) as u64));
    assert_eq!(state.page("", ALL).containers.len(), KEPT_ACKED);
}

#[test]
fn container_running_again_has_no_exit() {
    let mut state = State::default();
    state.add("a", &Arc::from("/a"), Some(0));
    state.kill("a", kill(1), Timestamp::default());
    state.exit("a", None, exited(137), Timestamp::default());
    state.depart("a");
    state.add("a", &Arc::from("/a2"), Some(0));
    assert!(!state.has_exited("a"));
    assert_eq!(state.kills_total("a"), Some(1));
    assert_eq!(state.page("", ALL).containers[0].cgroup, "/a2");
    state.exit("a", None, exited(0), Timestamp::default());
    assert_reads(&state, 0, &[(1, "a kill 1 +1"), (3, "a exit Some(0)")]);
}

#[test]
fn add_refused_at_container_limit() {
    let mut state = State::default();
    for n in 0..MAX_CONTAINERS {
        assert!(state.add(&n.to_string(), &Arc::from("/c"), None));
    }
    assert!(!state.add("more", &Arc::from("/c"), None));
    assert!(state.add("7", &Arc::from("/c"), None));
    state.depart("7");
    assert!(state.add("more", &Arc::from("/c"), None));
}

#[test]
fn pages_have_every_container_once_within_size() {
    let mut state = State::default();
    for n in 0..500 {
        state.add(&format!("{n:064}"), &Arc::from(format!("/kubepods/{n:064}")), Some(0));
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = state.page(&after, 48 << 10);
        let answer = agent::SnapshotResponse { containers: page.containers.clone(), ..Default::default() };
        assert!(answer.compute_size() <= 48 << 10);
        seen.extend(page.containers.into_iter().map(|it| it.id));
        if !page.more {
            break;
        }
        after = seen.last().unwrap().clone();
    }
    assert_eq!(seen, (0..500).map(|n| format!("{n:064}")).collect::<Vec<_>>());
}

#[test]
fn next_limited_by_size_and_number() {
    let mut state = State::default();
    for n in 0..1000 {
        state.add(&format!("{n:064}"), &Arc::from("/c"), Some(0));
        state.kill(&format!("{n:064}"), kill(1), Timestamp { boot_ns: u64::MAX, wall_ms: u64::MAX });
    }
    let signals = decode(&state.next(0, ALL, 48 << 10).signals);
    let answer = agent::NextSignalsResponse { signals, ..Default::default() };
    assert!((40 << 10..=48 << 10).contains(&answer.compute_size()));
    assert_eq!(state.next(0, 7, 48 << 10).signals.len(), 7);
    assert_eq!(state.next(0, 7, 1).signals.len(), 1);
}

/// In any order of changes, reads and acknowledgements a reader that continues from its cursor ends
/// up with the latest version of every slot, in rising order, or receives a count of lost signals.
#[test]
fn readers_get_every_slot_or_loss_count() {
    for seed in 1..=300_u64 {
        let mut dice = seed;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        let mut state = State::default();
        let mut readers = [0_u64; 2];
        let mut read = [BTreeMap::new(), BTreeMap::new()];
        let mut truth = BTreeMap::new();
        let mut totals = HashMap::new();
        for _ in 0..200 {
            let id = format!("c{}", roll(6));
            match roll(8) {
                0 | 1 => {
                    state.add(&id, &Arc::from("/c"), Some(0));
                }
                2 | 3 if state.containers.contains_key(&*id) => {
                    let total = totals.entry(id.clone()).or_insert(0);
                    *total += 1 + roll(2);
                    state.kill(&id, kill(*total), Timestamp::default());
                    truth.insert((id, None, true), state.seq());
                }
                4 if state.containers.contains_key(&*id) => {
                    let exec = (roll(2) == 0).then(|| format!("e{}", roll(3)));
                    state.exit(&id, exec.as_deref(), exited(0), Timestamp::default());
                    truth.insert((id, exec, false), state.seq());
                }
                5 => state.depart(&id),
                6 => state.ack(readers[roll(2) as usize]),
                _ => {
                    let reader = roll(2) as usize;
                    let SignalBatch { signals, lost, .. } =
                        state.next(readers[reader], 1 + roll(4) as usize, 200);
                    assert_eq!(lost, 0);
                    for signal in decode(&signals) {
                        assert!(signal.seq > readers[reader], "seed {seed}");
                        readers[reader] = signal.seq;
                        let is_kill = matches!(signal.event, Some(signal::Event::OomKill(_)));
                        read[reader].insert((signal.container_id, signal.exec_id, is_kill), signal.seq);
                    }
                }
            }
        }
        for (reader, mut after) in readers.into_iter().enumerate() {
            loop {
                let signals = decode(&state.next(after, 3, ALL).signals);
                let Some(last) = signals.last() else { break };
                after = last.seq;
                for signal in signals {
                    let is_kill = matches!(signal.event, Some(signal::Event::OomKill(_)));
                    read[reader].insert((signal.container_id, signal.exec_id, is_kill), signal.seq);
                }
            }
            assert_eq!(read[reader], truth, "seed {seed} reader {reader}");
        }
    }
}

fn pressure(total_us: u64) -> Pressure {
    Pressure { total_us, ..Pressure::default() }
}

#[test]
fn pressure_in_seq_order_and_only_latest_kept() {
    let mut state = State::default();
    state.add("c1", &Arc::from("/c1"), Some(0));
    state.pressure("c1", pressure(1), Timestamp::default());
    state.kill("c1", OomKill { total: 1, ..OomKill::default() }, Timestamp::default());
    state.pressure("c1", pressure(2), Timestamp::default());
    state.pressure("unknown", pressure(3), Timestamp::default());
    let seqs =
        |state: &State| decode(&state.next(0, ALL, ALL).signals).iter().map(|it| it.seq).collect::<Vec<_>>();
    assert_eq!(seqs(&state), [1, 2, 3]);
    assert_eq!(state.next_kill(0), Some((2, "c1".to_owned())));
    assert_eq!(state.next_kill(2), None);
    for at in 0..KEPT_PRESSURE as u64 + 10 {
        state.pressure("c1", pressure(at), Timestamp::default());
    }
    let batch = state.next(0, ALL, ALL);
    assert_eq!((batch.signals.len(), batch.lost, batch.pressure_lost), (KEPT_PRESSURE + 1, 0, 12));
    assert_eq!(decode(&batch.signals)[0].seq, 2, "a kill is never evicted for pressure");
    assert_eq!(state.next(state.seq(), ALL, ALL).pressure_lost, 0);
    state.ack(state.seq());
    assert_eq!(seqs(&state), [2], "acknowledged pressure is not kept");
    state.remove("c1");
    assert_eq!(seqs(&state), []);
}

/// Reads kills as Kata's runtimes do, one call after the other.
fn consume(state: &mut State, consumer: crate::kata_cursors::ConsumerId, mut after: u64) -> Vec<String> {
    let mut kills = Vec::new();
    while let Some((seq, id)) = state.next_kill(after) {
        kills.push(id);
        after = seq;
        state.kata_cursors.advance(consumer, after);
    }
    kills
}

#[test]
fn unconsumed_kills_outlive_their_containers() {
    let mut state = State::default();
    let (consumer, from) = state.kata_cursors.connect();
    let ids: Vec<String> = (0..3 * KEPT_ACKED).map(|at| format!("c{at:02}")).collect();
    for id in &ids {
        state.add(id, &Arc::from("/c"), Some(0));
        state.kill(id, kill(1), Timestamp::default());
        state.exit(id, None, exited(137), Timestamp::default());
        // The router acknowledges at once, and one of them is unwatched.
        if *id == ids[3] {
            state.remove(id);
        } else {
            state.depart(id);
        }
        state.ack(state.seq());
    }
    assert_eq!(state.containers.len(), KEPT_ACKED);
    let kept = state.next(0, ALL, ALL).signals.len();
    assert_eq!(kept, 2 * KEPT_ACKED, "retained kills are for Kata consumers only");
    assert_eq!(consume(&mut state, consumer, from), ids);
    assert_eq!(state.kata_cursors.next_retained(0), None);
}

#[test]
fn kills_of_removed_container_consumed_in_order() {
    let mut state = State::default();
    let (consumer, from) = state.kata_cursors.connect();
    for id in ["a", "b", "a"] {
        state.add(id, &Arc::from("/c"), Some(0));
        state.kill(id, kill(1), Timestamp::default());
        state.remove(id);
    }
    state.add("c", &Arc::from("/c"), Some(0));
    state.kill("c", kill(1), Timestamp::default());
    assert_eq!(consume(&mut state, consumer, from), ["a", "b", "a", "c"]);
}
