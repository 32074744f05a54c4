//! What whoever asks through a proxy is told of an end, and what the router is told of that.

use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::caller::{Caller, process};
use crate::fake_inner::{FakeInner, NANOS, SECONDS, STATUS, UNKNOWN, V2, V3, bytes, message, number};
use crate::fake_router::FakeRouter;

const RULED: u32 = 300;
const RULED_64: u64 = RULED as u64;

/// With a router that rules once it is let.
fn set() -> (Bench, FakeInner, FakeRouter) {
    let (bench, inner) = Bench::proxied();
    let router = FakeRouter::listen(&bench.at("router.sock"), "proxy", RULED);
    bench.start();
    (bench, inner, router)
}

/// All but the status is as the shim said it.
fn check_rest(payload: &[u8], exited_at: u32) {
    let at = bytes(payload, exited_at);
    assert_eq!((number(&at, 1), number(&at, 2)), (Some(SECONDS), Some(NANOS)));
    assert_eq!(number(payload, UNKNOWN.0), Some(UNKNOWN.1));
}

#[test]
fn wait_is_held_until_the_end_is_ruled() {
    let (bench, inner, router) = set();
    for (count, service) in [V2, V3].into_iter().enumerate() {
        let mut caller = Caller::dial(&bench.front());
        caller.service = service;
        inner.ended.send_replace(false);
        caller.of("Create", service, "");
        let wait = caller.begin("Wait", process(service, ""));
        inner.ended.send_replace(true);
        router.heard.until("Rule", |heard| heard.rules.lock().unwrap().len() == count + 1);
        // Others go on meanwhile, on the same connection.
        assert_eq!(number(&caller.of("Start", service, "e"), 1), Some(43));
        assert_eq!(router.heard.released.lock().unwrap().len(), count, "nobody was told");
        router.rule.add_permits(1);
        let reply = wait.end().unwrap().payload;
        assert_eq!(number(&reply, 1), Some(RULED_64));
        check_rest(&reply, 2);
        router.heard.until("Released", |heard| heard.released.lock().unwrap().len() == count + 1);
        let rule = router.heard.rules.lock().unwrap()[count].clone();
        assert_eq!((rule.namespace.as_str(), rule.status), ("k8s.io", u32::try_from(STATUS).unwrap()));
        assert_eq!(rule.exited_at_ns, Some(SECONDS * 1_000_000_000 + NANOS));
        assert_eq!((rule.process.container_id.as_str(), rule.process.pid), (service, Some(42)));
        let released = router.heard.released.lock().unwrap()[count].clone();
        assert_eq!(
            (released.namespace.as_str(), released.status, released.expired),
            ("k8s.io", RULED, false)
        );
        assert_eq!((released.process.container_id.as_str(), released.process.pid), (service, Some(42)));
    }
}

#[test]
fn all_who_ask_are_told_the_same_until_the_process_is_deleted() {
    let (bench, inner, router) = set();
    let (one, other) = (Caller::dial(&bench.front()), Caller::dial(&bench.front()));
    let waits = [
        one.begin("Wait", process("c1", "e")),
        one.begin("Wait", process("c1", "e")),
        other.begin("Wait", process("c1", "e")),
    ];
    inner.ended.send_replace(true);
    let state = other.begin("State", process("c1", "e"));
    router.heard.until("Rule", |heard| !heard.rules.lock().unwrap().is_empty());
    router.rule.add_permits(1);
    for wait in waits {
        assert_eq!(number(&wait.end().unwrap().payload, 1), Some(RULED_64));
    }
    assert_eq!(number(&state.end().unwrap().payload, 9), Some(RULED_64));
    let state = one.of("State", "c1", "e");
    assert_eq!(number(&state, 9), Some(RULED_64));
    check_rest(&state, 10);
    let deleted = other.of("Delete", "c1", "e");
    assert_eq!((number(&deleted, 1), number(&deleted, 2)), (Some(43), Some(RULED_64)));
    check_rest(&deleted, 3);
    assert_eq!(router.heard.rules.lock().unwrap().len(), 1);
    // Another process of the same name is ruled anew.
    router.rule.add_permits(1);
    assert_eq!(number(&one.of("Wait", "c1", "e"), 1), Some(RULED_64));
    assert_eq!(router.heard.rules.lock().unwrap().len(), 2);
    router.heard.until("Released", |heard| heard.released.lock().unwrap().len() == 2);
}

#[test]
fn state_and_delete_are_ruled_when_nobody_waited() {
    let (bench, inner, router) = set();
    let caller = Caller::dial(&bench.front());
    assert_eq!(number(&caller.of("State", "c1", ""), 4), Some(2), "running: no end to rule");
    inner.ended.send_replace(true);
    router.rule.add_permits(2);
    assert_eq!(number(&caller.of("State", "c1", ""), 9), Some(RULED_64));
    assert_eq!(number(&caller.of("Delete", "c2", ""), 2), Some(RULED_64));
    let rules = router.heard.rules.lock().unwrap().clone();
    assert_eq!(rules.iter().map(|rule| rule.process.pid).collect::<Vec<_>>(), [Some(42), Some(42)]);
}

#[test]
fn errors_and_what_never_ran_pass_as_they_are() {
    let (bench, inner, router) = set();
    inner.ended.send_replace(true);
    let caller = Caller::dial(&bench.front());
    assert_eq!(number(&caller.of("Delete", "never", ""), 2), Some(STATUS));
    for method in ["Wait", "State", "Delete"] {
        match caller.call(method, process("wrong", "")) {
            Err(ttrpc::Error::RpcStatus(status)) => assert!(status.message.contains("no such process")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(router.heard.rules.lock().unwrap().len(), 0);
}

#[test]
fn a_hold_that_is_over_tells_the_shim_s_own_status() {
    let (bench, inner) = Bench::proxied();
    bench.configure("mode = \"proxy\"\nprobe = \"5s\"\nhold = \"200ms\"");
    let router = FakeRouter::listen(&bench.at("router.sock"), "proxy", RULED);
    bench.start();
    inner.ended.send_replace(true);
    let caller = Caller::dial(&bench.front());
    let begun = Instant::now();
    assert_eq!(number(&caller.of("Wait", "c1", ""), 1), Some(STATUS));
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(10));
    router.heard.until("Released", |heard| {
        heard.released.lock().unwrap().iter().any(|it| it.expired && u64::from(it.status) == STATUS)
    });
    // What was told once is told ever after.
    router.rule.add_permits(9);
    assert_eq!(number(&caller.of("State", "c1", ""), 9), Some(STATUS));
    assert_eq!(number(&caller.of("Delete", "c1", ""), 2), Some(STATUS));
}

#[test]
fn without_a_router_nothing_is_held_and_the_next_one_hears_of_it() {
    let (bench, inner, mut router) = set();
    let caller = Caller::dial(&bench.front());
    caller.call("Kill", message(&[(3, 15)], &[(1, b"c1")])).unwrap();
    router.heard.until("Requested", |heard| !heard.requested.lock().unwrap().is_empty());
    router.end();
    inner.ended.send_replace(true);
    let begun = Instant::now();
    assert_eq!(number(&caller.of("Wait", "c1", ""), 1), Some(STATUS));
    assert!(begun.elapsed() < Duration::from_secs(4), "the hold is 5 s: {:?}", begun.elapsed());
    caller.call("Kill", message(&[(3, 9)], &[(1, b"c2")])).unwrap();
    std::fs::remove_file(bench.at("router.sock")).unwrap();
    let next = FakeRouter::listen(&bench.at("router.sock"), "proxy", RULED);
    next.heard.until("Released", |heard| heard.released.lock().unwrap().iter().any(|it| it.expired));
    next.heard.until("Requested", |heard| {
        heard.requested.lock().unwrap().iter().any(|it| it.requests.iter().any(|kill| kill.signal == 9))
    });
    next.rule.add_permits(1);
    assert_eq!(number(&caller.of("Wait", "c2", ""), 1), Some(RULED_64), "its link is made anew");
}

#[test]
fn signals_are_told_in_their_order() {
    let (bench, inner, router) = set();
    let caller = Caller::dial(&bench.front());
    caller.call("Kill", message(&[(3, 15)], &[(1, b"c1")])).unwrap();
    caller.call("Kill", message(&[(3, 9), (4, 1)], &[(1, b"c1"), (2, b"e")])).unwrap();
    caller.call("Kill", message(&[(3, 1)], &[(1, b"c2")])).unwrap();
    let kills = || -> Vec<_> {
        let calls = router.heard.requested.lock().unwrap().clone();
        calls.into_iter().flat_map(|call| call.requests).collect()
    };
    router.heard.until("three signals", |_| kills().len() >= 3);
    let heard: Vec<_> = kills().iter().map(|it| (it.seq, it.signal, it.all, it.exec_id.clone())).collect();
    assert_eq!(
        heard,
        [(1, 15, false, String::new()), (2, 9, true, "e".to_owned()), (3, 1, false, String::new())]
    );
    let kill = &kills()[0];
    assert_eq!((kill.container_id.as_str(), kill.proxy_id.len()), ("c1", 16));
    assert!(kill.at_ns > SECONDS * 1_000_000_000 && kill.boot_ns > 0);
    assert_eq!(*inner.calls.lock().unwrap(), ["Kill", "Kill", "Kill"]);
}

#[test]
fn signals_that_were_not_answered_for_come_with_the_next_rule() {
    let (bench, inner, router) = set();
    router.requested.forget_permits(1);
    let caller = Caller::dial(&bench.front());
    for (id, signal) in [("c1", 15), ("c2", 9), ("c1", 9)] {
        caller.call("Kill", message(&[(3, signal)], &[(1, id.as_bytes())])).unwrap();
    }
    router.heard.until("Requested", |heard| !heard.requested.lock().unwrap().is_empty());
    inner.ended.send_replace(true);
    router.rule.add_permits(2);
    caller.of("Wait", "c1", "");
    caller.of("Wait", "c1", "e");
    let rules = router.heard.rules.lock().unwrap().clone();
    let signals = |at: usize| rules[at].requests.iter().map(|it| it.signal).collect::<Vec<_>>();
    assert_eq!(signals(0), [15, 9]);
    assert_eq!(signals(1), [0; 0], "the router knows of them");
}

#[test]
fn a_router_that_dies_holds_nothing() {
    let (bench, inner, mut router) = set();
    let caller = Caller::dial(&bench.front());
    inner.ended.send_replace(true);
    let begun = Instant::now();
    let wait = caller.begin("Wait", process("c1", ""));
    router.heard.until("Rule", |heard| !heard.rules.lock().unwrap().is_empty());
    router.end();
    assert_eq!(number(&wait.end().unwrap().payload, 1), Some(STATUS));
    assert!(begun.elapsed() < Duration::from_secs(4), "the hold is 5 s: {:?}", begun.elapsed());
}

#[test]
fn a_caller_that_goes_away_leaves_the_ruling_to_the_next() {
    let (bench, inner, router) = set();
    let caller = Caller::dial(&bench.front());
    inner.ended.send_replace(true);
    let wait = caller.begin("Wait", process("c1", ""));
    router.heard.until("Rule", |heard| !heard.rules.lock().unwrap().is_empty());
    drop((caller, wait));
    router.rule.add_permits(1);
    let next = Caller::dial(&bench.front());
    assert_eq!(number(&next.of("State", "c1", ""), 9), Some(RULED_64));
    router.heard.until("Released", |heard| heard.released.lock().unwrap().len() == 1);
    assert_eq!(router.heard.rules.lock().unwrap().len(), 1);
}

#[test]
fn a_router_that_restarted_rules_the_next_end() {
    let (bench, inner, mut router) = set();
    let caller = Caller::dial(&bench.front());
    inner.ended.send_replace(true);
    router.rule.add_permits(1);
    caller.of("Wait", "c1", "");
    router.heard.until("Released", |heard| !heard.released.lock().unwrap().is_empty());
    router.end();
    let next = loop {
        // What ends with a runtime ends in its threads: until then its socket is in use.
        match std::os::unix::net::UnixStream::connect(bench.at("router.sock")) {
            Ok(_) => std::thread::yield_now(),
            Err(_) => break FakeRouter::listen(&bench.at("router.sock"), "proxy", RULED),
        }
    };
    next.rule.add_permits(1);
    assert_eq!(number(&caller.of("Wait", "c2", ""), 1), Some(RULED_64), "nothing had failed before");
}
