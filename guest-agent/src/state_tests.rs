use std::collections::HashMap;

use super::*;

const ALL: usize = usize::MAX / 4;

fn kill(total: u64) -> OomKill {
    OomKill { total, ..OomKill::default() }
}

fn exited(status: u32) -> Exited {
    Exited { status: Some(status), ..Exited::default() }
}

fn open(signals: &[Vec<u8>]) -> Vec<Signal> {
    signals.iter().map(|bytes| Signal::parse_from_bytes(bytes).unwrap()).collect()
}

fn told(state: &State, after: u64) -> Vec<(u64, String)> {
    let signals = open(&state.next(after, ALL, ALL).signals);
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

fn told_as(state: &State, after: u64, expect: &[(u64, &str)]) {
    let told = told(state, after);
    let told: Vec<(u64, &str)> = told.iter().map(|(seq, text)| (*seq, text.as_str())).collect();
    assert_eq!(told, expect);
}

#[test]
fn a_second_kill_replaces_the_first_under_a_higher_number() {
    let mut state = State::default();
    assert!(state.appear("a", &Arc::from("/a"), Some(0)));
    state.kill("a", kill(1), Moment::default());
    state.kill("a", kill(2), Moment::default());
    state.exit("a", None, exited(1), Moment::default());
    told_as(&state, 0, &[(2, "a kill 2 +2"), (3, "a exit Some(1)")]);
    told_as(&state, 2, &[(3, "a exit Some(1)")]);
    told_as(&state, 3, &[]);
    told_as(&state, u64::MAX, &[]);
}

#[test]
fn added_counts_from_what_was_acknowledged_and_from_what_was_there_before() {
    let mut state = State::default();
    state.appear("a", &Arc::from("/a"), Some(5));
    told_as(&state, 0, &[]);
    state.kill("a", kill(6), Moment::default());
    told_as(&state, 0, &[(1, "a kill 6 +1")]);
    // Read and not acknowledged.
    state.kill("a", kill(7), Moment::default());
    told_as(&state, 1, &[(2, "a kill 7 +2")]);
    state.ack(2);
    // A second reader still sees what was told.
    told_as(&state, 0, &[(2, "a kill 7 +2")]);
    state.kill("a", kill(9), Moment::default());
    told_as(&state, 2, &[(3, "a kill 9 +2")]);
}

#[test]
fn an_acknowledgement_of_what_never_was_is_cut_short() {
    let mut state = State::default();
    state.appear("a", &Arc::from("/a"), Some(0));
    state.ack(u64::MAX);
    state.kill("a", kill(1), Moment::default());
    state.kill("a", kill(2), Moment::default());
    told_as(&state, 0, &[(2, "a kill 2 +2")]);
}

#[test]
fn execs_have_exits_of_their_own() {
    let mut state = State::default();
    state.appear("a", &Arc::from("/a"), None);
    state.exit("a", Some("x"), exited(3), Moment::default());
    assert!(!state.has_exited("a"));
    state.exit("a", None, exited(0), Moment::default());
    assert!(state.has_exited("a"));
    told_as(&state, 0, &[(1, "a/x exit Some(3)"), (2, "a exit Some(0)")]);
    for exec in 0..2 * KEPT_EXECS {
        state.exit("a", Some(&exec.to_string()), exited(0), Moment::default());
    }
    assert_eq!(told(&state, 0).len(), KEPT_EXECS + 1);
    assert_eq!(state.next(0, ALL, ALL).lost, KEPT_EXECS as u64 + 1);
    assert_eq!(state.next(state.seq(), ALL, ALL).lost, 0);
}

#[test]
fn the_departed_are_kept_for_as_long_as_promised_and_then_counted_as_lost() {
    let mut state = State::default();
    let more = 10;
    for n in 0..KEPT_UNACKED + more {
        let id = format!("c{n}");
        state.appear(&id, &Arc::from("/c"), Some(0));
        state.exit(&id, None, exited(0), Moment::default());
        state.depart(&id);
    }
    let News { signals, lost, .. } = state.next(0, ALL, ALL);
    assert_eq!((signals.len(), lost), (KEPT_UNACKED, more as u64));
    assert_eq!(open(&signals)[0].container_id, format!("c{more}"));
    // Who has read the dropped ones has lost nothing.
    assert_eq!(state.next(more as u64, ALL, ALL).lost, 0);
    assert_eq!(state.next(more as u64 - 1, ALL, ALL).lost, 1);
    state.ack(state.seq());
    let News { signals, lost, .. } = state.next(0, ALL, ALL);
    assert_eq!((signals.len(), lost), (KEPT_ACKED, (KEPT_UNACKED + more - KEPT_ACKED) as u64));
    assert_eq!(state.page("", ALL).containers.len(), KEPT_ACKED);
}

#[test]
fn one_that_runs_again_is_no_longer_over() {
    let mut state = State::default();
    state.appear("a", &Arc::from("/a"), Some(0));
    state.kill("a", kill(1), Moment::default());
    state.exit("a", None, exited(137), Moment::default());
    state.depart("a");
    state.appear("a", &Arc::from("/a2"), Some(0));
    assert!(!state.has_exited("a"));
    assert_eq!(state.kills_total("a"), Some(1));
    assert_eq!(state.page("", ALL).containers[0].cgroup, "/a2");
    state.exit("a", None, exited(0), Moment::default());
    told_as(&state, 0, &[(1, "a kill 1 +1"), (3, "a exit Some(0)")]);
}

#[test]
fn there_is_a_most_of_containers() {
    let mut state = State::default();
    for n in 0..MAX_CONTAINERS {
        assert!(state.appear(&n.to_string(), &Arc::from("/c"), None));
    }
    assert!(!state.appear("more", &Arc::from("/c"), None));
    assert!(state.appear("7", &Arc::from("/c"), None));
    state.depart("7");
    assert!(state.appear("more", &Arc::from("/c"), None));
}

#[test]
fn pages_hold_every_container_once_within_their_size() {
    let mut state = State::default();
    for n in 0..500 {
        state.appear(&format!("{n:064}"), &Arc::from(format!("/kubepods/{n:064}")), Some(0));
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
fn answers_stop_at_their_size_and_number() {
    let mut state = State::default();
    for n in 0..1000 {
        state.appear(&format!("{n:064}"), &Arc::from("/c"), Some(0));
        state.kill(&format!("{n:064}"), kill(1), Moment { boot_ns: u64::MAX, wall_ms: u64::MAX });
    }
    let signals = open(&state.next(0, ALL, 48 << 10).signals);
    let answer = agent::NextSignalsResponse { signals, ..Default::default() };
    assert!((40 << 10..=48 << 10).contains(&answer.compute_size()));
    assert_eq!(state.next(0, 7, 48 << 10).signals.len(), 7);
    assert_eq!(state.next(0, 7, 1).signals.len(), 1);
}

/// Any order of changes, reads and acknowledgements: a reader that goes on from what it was told ends up with the latest of
/// every slot, in rising order, or is told that it lost something.
#[test]
fn readers_end_up_with_everything_or_are_told_of_losses() {
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
                    state.appear(&id, &Arc::from("/c"), Some(0));
                }
                2 | 3 if state.containers.contains_key(&*id) => {
                    let total = totals.entry(id.clone()).or_insert(0);
                    *total += 1 + roll(2);
                    state.kill(&id, kill(*total), Moment::default());
                    truth.insert((id, None, true), state.seq());
                }
                4 if state.containers.contains_key(&*id) => {
                    let exec = (roll(2) == 0).then(|| format!("e{}", roll(3)));
                    state.exit(&id, exec.as_deref(), exited(0), Moment::default());
                    truth.insert((id, exec, false), state.seq());
                }
                5 => state.depart(&id),
                6 => state.ack(readers[roll(2) as usize]),
                _ => {
                    let reader = roll(2) as usize;
                    let News { signals, lost, .. } = state.next(readers[reader], 1 + roll(4) as usize, 200);
                    assert_eq!(lost, 0);
                    for signal in open(&signals) {
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
                let signals = open(&state.next(after, 3, ALL).signals);
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
fn pressure_comes_in_its_place_and_only_the_latest_is_kept() {
    let mut state = State::default();
    state.appear("c1", &Arc::from("/c1"), Some(0));
    state.pressure("c1", pressure(1), Moment::default());
    state.kill("c1", OomKill { total: 1, ..OomKill::default() }, Moment::default());
    state.pressure("c1", pressure(2), Moment::default());
    state.pressure("nobody", pressure(3), Moment::default());
    let seqs =
        |state: &State| open(&state.next(0, ALL, ALL).signals).iter().map(|it| it.seq).collect::<Vec<_>>();
    assert_eq!(seqs(&state), [1, 2, 3]);
    assert_eq!(state.next_kill(0), Some((2, "c1".to_owned())));
    assert_eq!(state.next_kill(2), None);
    for at in 0..KEPT_PRESSURE as u64 + 10 {
        state.pressure("c1", pressure(at), Moment::default());
    }
    let news = state.next(0, ALL, ALL);
    assert_eq!((news.signals.len(), news.lost, news.pressure_lost), (KEPT_PRESSURE + 1, 0, 12));
    assert_eq!(open(&news.signals)[0].seq, 2, "a kill never gives way to pressure");
    assert_eq!(state.next(state.seq(), ALL, ALL).pressure_lost, 0);
    state.ack(state.seq());
    assert_eq!(seqs(&state), [2], "pressure that was dealt with is not kept");
    state.forget("c1");
    assert_eq!(seqs(&state), []);
}

/// Reads kills as Kata's runtimes do, one call after the other.
fn polled(state: &mut State, consumer: crate::polls::Consumer, mut after: u64) -> Vec<String> {
    let mut told = Vec::new();
    while let Some((seq, id)) = state.next_kill(after) {
        told.push(id);
        after = seq;
        state.polls.took(consumer, after);
    }
    told
}

#[test]
fn kills_that_a_poller_has_not_taken_outlive_their_containers() {
    let mut state = State::default();
    let (consumer, from) = state.polls.begin();
    let ids: Vec<String> = (0..3 * KEPT_ACKED).map(|at| format!("c{at:02}")).collect();
    for id in &ids {
        state.appear(id, &Arc::from("/c"), Some(0));
        state.kill(id, kill(1), Moment::default());
        state.exit(id, None, exited(137), Moment::default());
        // The router is quick, and one of them is watched no more.
        if *id == ids[3] {
            state.forget(id);
        } else {
            state.depart(id);
        }
        state.ack(state.seq());
    }
    assert_eq!(state.containers.len(), KEPT_ACKED);
    let kept = state.next(0, ALL, ALL).signals.len();
    assert_eq!(kept, 2 * KEPT_ACKED, "what is owed to pollers is told to nobody else");
    assert_eq!(polled(&mut state, consumer, from), ids);
    assert_eq!(state.polls.owed(0), None);
}

#[test]
fn a_container_that_is_killed_again_after_it_was_forgotten_is_told_in_order() {
    let mut state = State::default();
    let (consumer, from) = state.polls.begin();
    for id in ["a", "b", "a"] {
        state.appear(id, &Arc::from("/c"), Some(0));
        state.kill(id, kill(1), Moment::default());
        state.forget(id);
    }
    state.appear("c", &Arc::from("/c"), Some(0));
    state.kill("c", kill(1), Moment::default());
    assert_eq!(polled(&mut state, consumer, from), ["a", "b", "a", "c"]);
}
