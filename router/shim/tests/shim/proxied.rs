//! Mode `proxy`: what `start` prints, and when there is a proxy behind it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{FlockOperation, flock};

use crate::bench::{Bench, STOCK, ended};
use crate::caller::Caller;
use crate::fake_inner::number;
use crate::fake_router::FakeRouter;

#[test]
fn start_prints_the_proxy_s_address_and_rewrites_the_bundle_s() {
    let (bench, mut inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    fs::write(bench.bundle().join("address"), format!("unix://{}", bench.task().display())).unwrap();
    let address = format!("unix://{}", bench.front().display());
    assert_eq!(bench.start(), address);
    assert_eq!(bench.heard(), bench.expected(&["start"], &bench.at("router.sock")));
    assert_eq!(fs::read_to_string(bench.bundle().join("address")).unwrap(), address);
    assert_eq!(fs::metadata(bench.front()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(number(&Caller::dial(&bench.front()).of("Create", "c1", ""), 1), Some(42));
    let [pid] = bench.proxies()[..] else { panic!("one proxy") };
    inner.end();
    ended(pid);
    assert!(!bench.front().exists(), "a proxy takes its socket with it");
    assert!(!bench.task().exists(), "and the shim's that nobody listens on");
    assert_eq!(bench.log(), "");
}

#[test]
fn start_prints_containerd_2_s_object_with_the_proxy_s_address() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    let task = bench.task().display().to_string();
    bench.inner(&format!(
        "touch {task}; printf '{{\"version\":3,\"address\":\"unix://{task}\",\"protocol\":\"ttrpc\",\"more\":[1]}}'"
    ));
    let printed: serde_json::Value = serde_json::from_str(&bench.start()).unwrap();
    let address = format!("unix://{task}.c");
    let expect = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc", "more": [1]});
    assert_eq!(printed, expect);
    assert_eq!(bench.proxies().len(), 1);
}

#[test]
fn a_pod_s_containers_share_a_proxy_also_when_the_router_is_gone() {
    let (bench, _inner) = Bench::proxied();
    let mut router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    let printed = bench.start();
    let proxies = bench.proxies();
    assert_eq!(bench.start(), printed);
    router.end();
    assert_eq!(bench.start(), printed);
    assert!(bench.heard().contains(STOCK), "the inner shim's start is as stock");
    assert_eq!(bench.proxies(), proxies);
}

#[test]
fn starts_at_once_share_a_proxy() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    let address = format!("unix://{}", bench.front().display());
    let (task, count) = (bench.task().display().to_string(), bench.at("count"));
    bench.inner(&format!("touch {task}; echo >> {}; printf unix://{task}", count.display()));
    let folder = File::open(bench.front().parent().unwrap()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.start())).collect();
        // All have found no proxy before one may make it.
        while fs::read(&count).map_or(0, |lines| lines.len()) < 4 {
            std::thread::yield_now();
        }
        flock(&folder, FlockOperation::Unlock).unwrap();
        for start in starts {
            assert_eq!(start.join().unwrap(), address);
        }
    });
    assert_eq!(bench.proxies().len(), 1);
}

#[test]
fn a_start_does_not_wait_for_ever_for_another() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    let folder = File::open(bench.front().parent().unwrap()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    check_stock(&bench);
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    drop(std::os::unix::net::UnixListener::bind(bench.front()).unwrap());
    bench.start();
    assert_eq!(number(&Caller::dial(&bench.front()).of("Create", "c1", ""), 1), Some(42));
}

fn check_stock(bench: &Bench) {
    assert_eq!(bench.start(), format!("unix://{}", bench.task().display()));
    assert_eq!(bench.proxies(), []);
    assert!(!bench.front().exists());
}

#[test]
fn without_a_router_there_is_no_proxy() {
    let (bench, _inner) = Bench::proxied();
    check_stock(&bench);
    assert_eq!(bench.heard(), bench.expected(&["start"], STOCK.as_ref()));
    assert!(bench.log().contains("nobody answers"), "{}", bench.log());
}

#[test]
fn a_shim_from_before_gets_no_proxy() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    bench.inner(&format!("touch -d '-1 hour' {0}; printf unix://{0}", bench.task().display()));
    check_stock(&bench);
}

#[test]
fn a_proxy_that_does_not_come_up_is_none() {
    let (bench, mut inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    inner.end();
    check_stock(&bench);
    assert!(bench.log().contains("no proxy: the proxy did not come up"), "{}", bench.log());
}

#[test]
fn what_a_start_that_failed_says_is_passed_on() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    bench.inner("echo out; echo err >&2; exit 7");
    let output = bench.call(&["start"]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn what_is_no_address_is_passed_on() {
    let (bench, _inner) = Bench::proxied();
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    bench.inner("echo vsock://3:1");
    assert_eq!(bench.start(), "vsock://3:1\n");
    assert!(bench.log().contains("no proxy: the shim printed no address"), "{}", bench.log());
}
