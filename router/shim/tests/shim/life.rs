//! The lifetime of a proxy, its memory, and its robustness.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, kill_process};

use crate::caller::{Caller, process};
use crate::fake_inner::{LARGE, STATUS, message, number};
use crate::fake_router::FakeRouter;
use crate::fixture::{Fixture, ended};

const RULED: u32 = 300;
/// Of anonymous memory, in use.
const KIB: u64 = 1024;

#[test]
fn garbage_on_one_connection_affects_no_other() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    let caller = Caller::dial(&fixture.front());
    caller.of("Create", "c1", "");
    for garbage in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"\0\0\0\x04\0\0\0\x01\x01\0\xff\xff\xff\xff",
        b"\0\0\0\x04\0\0\0\x02\x09\x09abcd",
        b"\0\0\0",
    ] {
        let mut stream = UnixStream::connect(fixture.front()).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The shim's answer, if there is one, and the end of the connection.
        stream.read_to_end(&mut Vec::new()).ok();
        assert_eq!(number(&caller.of("Start", "c1", ""), 1), Some(42));
    }
    assert_eq!(fixture.proxies().len(), 1);
}

#[test]
fn large_frames_pass_in_both_directions() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    let caller = Caller::dial(&fixture.front());
    assert!(caller.of("Stats", "c1", "") == vec![7; LARGE]);
    let request = message(&[], &[(1, b"c1"), (9, &vec![7; LARGE])]);
    let length = request.len() as u64;
    assert_eq!(number(&caller.call("Update", request).unwrap().payload, 1), Some(length));
}

#[test]
fn proxy_ends_only_with_its_shim() {
    let (fixture, mut inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    let [pid] = fixture.proxies()[..] else { panic!("one proxy") };
    let caller = Caller::dial(&fixture.front());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::PIPE] {
        kill_process(pid, signal).unwrap();
        assert_eq!(number(&caller.of("Start", "c1", ""), 1), Some(42), "{signal:?}");
    }
    let wait = caller.begin("Wait", process("c1", ""));
    inner.end();
    assert!(wait.end().is_err(), "containerd learns that the shim is gone");
    ended(pid);
    assert!(!fixture.front().exists());
}

#[test]
fn held_reply_sent_although_shim_has_ended() {
    let (fixture, mut inner) = Fixture::proxied();
    let router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    let caller = Caller::dial(&fixture.front());
    inner.ended.send_replace(true);
    let wait = caller.begin("Wait", process("c1", ""));
    router.received.until("Rule", |received| !received.rules.lock().unwrap().is_empty());
    inner.end();
    router.rule.add_permits(1);
    assert_eq!(number(&wait.end().unwrap().payload, 1), Some(RULED.into()));
    router.received.until("Released", |received| !received.released.lock().unwrap().is_empty());
}

#[test]
fn proxy_is_detached_and_stays_small() {
    let (fixture, inner) = Fixture::proxied();
    let mut router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", RULED);
    fixture.start();
    let [pid] = fixture.proxies()[..] else { panic!("one proxy") };
    let process_of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", pid.as_raw_pid())).unwrap();
    let stat = process_of("stat");
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.as_raw_pid().to_string(), "a session of its own");
    let cwd = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_pid())).unwrap();
    assert_eq!(cwd.to_str(), Some("/"));
    assert!(process_of("cmdline").starts_with("containerd-shim-coroner-v2\0proxy\0--inner\0"));
    let anonymous = || -> u64 {
        let rollup = process_of("smaps_rollup");
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let idle = anonymous();
    inner.ended.send_replace(true);
    router.rule.add_permits(1_000);
    let callers: Vec<_> = (0..10).map(|_| Caller::dial(&fixture.front())).collect();
    for count in 0..100 {
        for (at, caller) in callers.iter().enumerate() {
            let id = format!("container-{at}-{count}");
            caller.of("Create", &id, "");
            assert_eq!(number(&caller.of("Wait", &id, ""), 1), Some(RULED.into()));
            caller.call("Kill", message(&[(3, 9)], &[(1, id.as_bytes())])).unwrap();
            assert_eq!(number(&caller.of("Delete", &id, ""), 2), Some(RULED.into()));
        }
    }
    let used = anonymous();
    router.end();
    // Ids like containerd's, and more of them than the proxy keeps.
    for count in 0..1_500 {
        let (id, exec) = (format!("{count:064}"), format!("{count:064x}"));
        assert_eq!(number(&callers[count % 10].of("Wait", &id, &exec), 1), Some(STATUS));
    }
    let alone = anonymous();
    println!("anonymous KiB: idle {idle}, after 1,000 containers {used}, with all that is kept {alone}");
    assert!(idle.max(used).max(alone) <= KIB, "idle {idle}, used {used}, alone {alone} KiB");
    assert_eq!(process_of("status").lines().find(|it| it.starts_with("Threads:")), Some("Threads:\t1"));
}
