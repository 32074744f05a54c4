//! The status that callers receive through a proxy, and what the router receives about it.

use std::time::{Duration, Instant};

use crate::caller::{Caller, process};
use crate::fake_inner::{FakeInner, NANOS, SECONDS, STATUS, UNKNOWN, V2, V3, bytes, message, number};
use crate::fake_router::FakeRouter;
use crate::fixture::Fixture;

const RULED: u32 = 300;
const RULED_64: u64 = RULED as u64;

/// A fixture with a router that rules once it has a permit.
fn proxied_fixture() -> (Fixture, FakeInner, FakeRouter) {
    let (fixture, inner) = Fixture::proxied();
    let router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    (fixture, inner, router)
}

/// All fields but the status are the shim's own.
fn check_rest(payload: &[u8], exited_at: u32) {
    let at = bytes(payload, exited_at);
    assert_eq!((number(&at, 1), number(&at, 2)), (Some(SECONDS), Some(NANOS)));
    assert_eq!(number(payload, UNKNOWN.0), Some(UNKNOWN.1));
}

#[test]
fn wait_held_until_exit_is_ruled() {
    let (fixture, inner, router) = proxied_fixture();
    for (count, service) in [V2, V3].into_iter().enumerate() {
        let mut caller = Caller::dial(&fixture.front());
        caller.service = service;
        inner.ended.send_replace(false);
        caller.of("Create", service, "");
        let wait = caller.begin("Wait", process(service, ""));
        inner.ended.send_replace(true);
        router.received.until("Rule", |received| received.rules.lock().unwrap().len() == count + 1);
        // Other calls continue meanwhile, on the same connection.
        assert_eq!(number(&caller.of("Start", service, "e"), 1), Some(43));
        assert_eq!(router.received.released.lock().unwrap().len(), count, "no caller has received a status");
        router.rule.add_permits(1);
        let reply = wait.end().unwrap().payload;
        assert_eq!(number(&reply, 1), Some(RULED_64));
        check_rest(&reply, 2);
        router.received.until("Released", |received| received.released.lock().unwrap().len() == count + 1);
        let rule = router.received.rules.lock().unwrap()[count].clone();
        assert_eq!((rule.namespace.as_str(), rule.status), ("k8s.io", u32::try_from(STATUS).unwrap()));
        assert_eq!(rule.exited_at_ns, Some(SECONDS * 1_000_000_000 + NANOS));
        assert_eq!((rule.process.container_id.as_str(), rule.process.pid), (service, Some(42)));
        let released = router.received.released.lock().unwrap()[count].clone();
        assert_eq!(
            (released.namespace.as_str(), released.status, released.expired),
            ("k8s.io", RULED, false)
        );
        assert_eq!((released.process.container_id.as_str(), released.process.pid), (service, Some(42)));
    }
}

/// From 2.3 on containerd queries Stats after an exit with status 137, and sets OOMKilled by
/// itself.
#[test]
fn stats_of_ended_container_agree_with_its_ruling() {
    let (fixture, inner, router) = proxied_fixture();
    router.rule.add_permits(1);
    let caller = Caller::dial(&fixture.front());
    caller.of("Create", "removed", "");
    assert!(caller.call("Stats", process("removed", "")).is_err(), "it runs: the shim's own answer");
    inner.ended.send_replace(true);
    caller.of("Wait", "removed", "");
    let metrics = bytes(&bytes(&caller.of("Stats", "removed", ""), 1), 2);
    assert_eq!(number(&bytes(&metrics, 8), 5), Some(1));
}

#[test]
fn rule_waits_for_pid_in_reply_to_start() {
    let (fixture, inner, router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    caller.of("Exec", "c1", "e");
    inner.starts.send_replace(false);
    let wait = caller.begin("Wait", process("c1", "e"));
    let start = caller.begin("Start", process("c1", "e"));
    inner.ended.send_replace(true);
    // The shim has answered the Wait by then, on the same connection.
    for _ in 0..100 {
        caller.of("Update", "c1", "");
    }
    inner.starts.send_replace(true);
    assert_eq!(number(&start.end().unwrap().payload, 1), Some(43));
    router.rule.add_permits(1);
    assert_eq!(number(&wait.end().unwrap().payload, 1), Some(RULED_64));
    router.received.until("Released", |received| !received.released.lock().unwrap().is_empty());
    let rule = router.received.rules.lock().unwrap()[0].clone();
    let released = router.received.released.lock().unwrap()[0].clone();
    assert_eq!((rule.process.pid, released.process.pid), (Some(43), Some(43)));
    assert!(!rule.hold_id.is_empty() && rule.hold_id == released.hold_id, "{rule:?} {released:?}");
}

#[test]
fn failed_start_does_not_delay_rule() {
    let (fixture, inner, router) = proxied_fixture();
    router.rule.add_permits(1);
    inner.ended.send_replace(true);
    let caller = Caller::dial(&fixture.front());
    let begun = Instant::now();
    caller.call("Start", process("c1", "unstartable")).unwrap_err();
    assert_eq!(number(&caller.of("Wait", "c1", "unstartable"), 1), Some(RULED_64));
    assert!(begun.elapsed() < Duration::from_secs(4), "the hold is 5 s: {:?}", begun.elapsed());
}

#[test]
fn callers_receive_same_status_until_deletion() {
    let (fixture, inner, router) = proxied_fixture();
    let (one, other) = (Caller::dial(&fixture.front()), Caller::dial(&fixture.front()));
    let waits = [
        one.begin("Wait", process("c1", "e")),
        one.begin("Wait", process("c1", "e")),
        other.begin("Wait", process("c1", "e")),
    ];
    inner.ended.send_replace(true);
    let state = other.begin("State", process("c1", "e"));
    router.received.until("Rule", |received| !received.rules.lock().unwrap().is_empty());
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
    assert_eq!(router.received.rules.lock().unwrap().len(), 1);
    // Another process of the same name gets its own ruling.
    router.rule.add_permits(1);
    assert_eq!(number(&one.of("Wait", "c1", "e"), 1), Some(RULED_64));
    assert_eq!(router.received.rules.lock().unwrap().len(), 2);
    router.received.until("Released", |received| received.released.lock().unwrap().len() == 2);
}

#[test]
fn state_and_delete_ruled_without_wait() {
    let (fixture, inner, router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    assert_eq!(number(&caller.of("State", "c1", ""), 4), Some(2), "running: no end to rule");
    inner.ended.send_replace(true);
    router.rule.add_permits(2);
    assert_eq!(number(&caller.of("State", "c1", ""), 9), Some(RULED_64));
    assert_eq!(number(&caller.of("Delete", "c2", ""), 2), Some(RULED_64));
    let rules = router.received.rules.lock().unwrap().clone();
    assert_eq!(rules.iter().map(|rule| rule.process.pid).collect::<Vec<_>>(), [Some(42), Some(42)]);
}

#[test]
fn errors_and_unstarted_processes_pass_unchanged() {
    let (fixture, inner, router) = proxied_fixture();
    inner.ended.send_replace(true);
    let caller = Caller::dial(&fixture.front());
    assert_eq!(number(&caller.of("Delete", "never", ""), 2), Some(STATUS));
    for method in ["Wait", "State", "Delete"] {
        match caller.call(method, process("wrong", "")) {
            Err(ttrpc::Error::RpcStatus(status)) => assert!(status.message.contains("no such process")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(router.received.rules.lock().unwrap().len(), 0);
}

#[test]
fn expired_hold_returns_own_status_of_shim() {
    let (fixture, inner) = Fixture::proxied();
    fixture.configure("mode = \"proxy\"\nprobe = \"5s\"\nhold = \"200ms\"");
    let router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    inner.ended.send_replace(true);
    let caller = Caller::dial(&fixture.front());
    let begun = Instant::now();
    assert_eq!(number(&caller.of("Wait", "c1", ""), 1), Some(STATUS));
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(10));
    router.received.until("Released", |received| {
        received.released.lock().unwrap().iter().any(|it| it.expired && u64::from(it.status) == STATUS)
    });
    // A status that was sent stays the same.
    router.rule.add_permits(9);
    assert_eq!(number(&caller.of("State", "c1", ""), 9), Some(STATUS));
    assert_eq!(number(&caller.of("Delete", "c1", ""), 2), Some(STATUS));
}

#[test]
fn exit_without_router_reported_to_the_next() {
    let (fixture, inner, mut router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    caller.call("Kill", message(&[(3, 15)], &[(1, b"c1")])).unwrap();
    router.received.until("Requested", |received| !received.requested.lock().unwrap().is_empty());
    router.end();
    inner.ended.send_replace(true);
    let begun = Instant::now();
    assert_eq!(number(&caller.of("Wait", "c1", ""), 1), Some(STATUS));
    assert!(begun.elapsed() < Duration::from_secs(4), "the hold is 5 s: {:?}", begun.elapsed());
    caller.call("Kill", message(&[(3, 9)], &[(1, b"c2")])).unwrap();
    std::fs::remove_file(fixture.at("router.sock")).unwrap();
    let next = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    next.received.until("Released", |received| received.released.lock().unwrap().iter().any(|it| it.expired));
    next.received.until("Requested", |received| {
        received.requested.lock().unwrap().iter().any(|it| it.requests.iter().any(|kill| kill.signal == 9))
    });
    next.rule.add_permits(1);
    assert_eq!(number(&caller.of("Wait", "c2", ""), 1), Some(RULED_64), "the link is replaced");
}

#[test]
fn kill_requests_reported_in_order() {
    let (fixture, inner, router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    caller.call("Kill", message(&[(3, 15)], &[(1, b"c1")])).unwrap();
    caller.call("Kill", message(&[(3, 9), (4, 1)], &[(1, b"c1"), (2, b"e")])).unwrap();
    caller.call("Kill", message(&[(3, 1)], &[(1, b"c2")])).unwrap();
    let kills = || -> Vec<_> {
        let calls = router.received.requested.lock().unwrap().clone();
        calls.into_iter().flat_map(|call| call.requests).collect()
    };
    router.received.until("three signals", |_| kills().len() >= 3);
    let received: Vec<_> = kills().iter().map(|it| (it.seq, it.signal, it.all, it.exec_id.clone())).collect();
    assert_eq!(
        received,
        [(1, 15, false, String::new()), (2, 9, true, "e".to_owned()), (3, 1, false, String::new())]
    );
    let kill = &kills()[0];
    assert_eq!((kill.container_id.as_str(), kill.proxy_id.len()), ("c1", 16));
    assert!(kill.at_ns > SECONDS * 1_000_000_000 && kill.boot_ns > 0);
    assert_eq!(*inner.calls.lock().unwrap(), ["Kill", "Kill", "Kill"]);
}

#[test]
fn unacknowledged_kills_sent_with_next_rule() {
    let (fixture, inner, router) = proxied_fixture();
    router.requested.forget_permits(1);
    let caller = Caller::dial(&fixture.front());
    for (id, signal) in [("c1", 15), ("c2", 9), ("c1", 9)] {
        caller.call("Kill", message(&[(3, signal)], &[(1, id.as_bytes())])).unwrap();
    }
    router.received.until("Requested", |received| !received.requested.lock().unwrap().is_empty());
    inner.ended.send_replace(true);
    router.rule.add_permits(2);
    caller.of("Wait", "c1", "");
    caller.of("Wait", "c1", "e");
    let rules = router.received.rules.lock().unwrap().clone();
    let signals = |at: usize| rules[at].requests.iter().map(|it| it.signal).collect::<Vec<_>>();
    assert_eq!(signals(0), [15, 9]);
    assert_eq!(signals(1), [0; 0], "the router has them");
}

#[test]
fn router_crash_ends_holds() {
    let (fixture, inner, mut router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    inner.ended.send_replace(true);
    let begun = Instant::now();
    let wait = caller.begin("Wait", process("c1", ""));
    router.received.until("Rule", |received| !received.rules.lock().unwrap().is_empty());
    router.end();
    assert_eq!(number(&wait.end().unwrap().payload, 1), Some(STATUS));
    assert!(begun.elapsed() < Duration::from_secs(4), "the hold is 5 s: {:?}", begun.elapsed());
}

#[test]
fn ruling_of_lost_caller_used_for_next() {
    let (fixture, inner, router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    inner.ended.send_replace(true);
    let wait = caller.begin("Wait", process("c1", ""));
    router.received.until("Rule", |received| !received.rules.lock().unwrap().is_empty());
    drop((caller, wait));
    router.rule.add_permits(1);
    let next = Caller::dial(&fixture.front());
    assert_eq!(number(&next.of("State", "c1", ""), 9), Some(RULED_64));
    router.received.until("Released", |received| received.released.lock().unwrap().len() == 1);
    assert_eq!(router.received.rules.lock().unwrap().len(), 1);
}

#[test]
fn restarted_router_rules_next_exit() {
    let (fixture, inner, mut router) = proxied_fixture();
    let caller = Caller::dial(&fixture.front());
    inner.ended.send_replace(true);
    router.rule.add_permits(1);
    caller.of("Wait", "c1", "");
    router.received.until("Released", |received| !received.released.lock().unwrap().is_empty());
    router.end();
    let next = loop {
        // A runtime ends in its threads: until then its socket is in use.
        match std::os::unix::net::UnixStream::connect(fixture.at("router.sock")) {
            Ok(_) => std::thread::yield_now(),
            Err(_) => break FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED),
        }
    };
    next.rule.add_permits(1);
    assert_eq!(number(&caller.of("Wait", "c2", ""), 1), Some(RULED_64), "nothing had failed before");
}
