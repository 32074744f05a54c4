//! Mode `proxy`: the output of `start`, and when it starts a proxy.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{FlockOperation, flock};

use crate::caller::Caller;
use crate::fake_inner::{UNKNOWN, bytes, message, number};
use crate::fake_router::FakeRouter;
use crate::fixture::{Fixture, STOCK, ended};

#[test]
fn start_prints_proxy_address_and_rewrites_bundle() {
    let (fixture, mut inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    fs::write(fixture.bundle().join("address"), format!("unix://{}", fixture.task().display())).unwrap();
    let address = format!("unix://{}", fixture.front().display());
    assert_eq!(fixture.start(), address);
    assert_eq!(fixture.invocation(), fixture.expected(&["start"], &fixture.at("router.sock")));
    assert_eq!(fs::read_to_string(fixture.bundle().join("address")).unwrap(), address);
    assert_eq!(fs::metadata(fixture.front()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(number(&Caller::dial(&fixture.front()).of("Create", "c1", ""), 1), Some(42));
    let [pid] = fixture.proxies()[..] else { panic!("one proxy") };
    inner.end();
    ended(pid);
    assert!(!fixture.front().exists(), "a proxy removes its socket");
    assert!(!fixture.task().exists(), "and the shim's socket without a listener");
    assert_eq!(fixture.log(), "");
}

#[test]
fn start_prints_json_with_proxy_address() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    let task = fixture.task().display().to_string();
    fixture.inner(&format!(
        "touch {task}; printf '{{\"version\":3,\"address\":\"unix://{task}\",\"protocol\":\"ttrpc\",\"more\":[1]}}'"
    ));
    let printed: serde_json::Value = serde_json::from_str(&fixture.start()).unwrap();
    let address = format!("unix://{task}.c");
    let expect = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc", "more": [1]});
    assert_eq!(printed, expect);
    assert_eq!(fixture.proxies().len(), 1);
}

#[test]
fn start_prints_protobuf_with_proxy_address() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    let task = fixture.task().display().to_string();
    // Version, address, protocol, and a field that no containerd has.
    let answer =
        |address: String| message(&[(1, 3), UNKNOWN], &[(2, address.as_bytes()), (3, b"ttrpc".as_slice())]);
    fs::write(fixture.at("answer"), answer(format!("unix://{task}"))).unwrap();
    fixture.inner(&format!("touch {task}; cat {}", fixture.at("answer").display()));
    let printed = fixture.call(&["start"]).stdout;
    assert_eq!(fixture.log(), "");
    assert_eq!(bytes(&printed, 2), format!("unix://{task}.c").into_bytes());
    assert_eq!((number(&printed, 1), number(&printed, UNKNOWN.0)), (Some(3), Some(UNKNOWN.1)));
    assert_eq!(bytes(&printed, 3), b"ttrpc");
    assert_eq!(fixture.proxies().len(), 1);
}

#[test]
fn pod_containers_share_proxy_without_router() {
    let (fixture, _inner) = Fixture::proxied();
    let mut router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    let printed = fixture.start();
    let proxies = fixture.proxies();
    assert_eq!(fixture.start(), printed);
    router.end();
    assert_eq!(fixture.start(), printed);
    assert!(fixture.invocation().contains(STOCK), "the inner shim's start is as stock");
    assert_eq!(fixture.proxies(), proxies);
}

#[test]
fn concurrent_starts_share_a_proxy() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    let address = format!("unix://{}", fixture.front().display());
    let (task, count) = (fixture.task().display().to_string(), fixture.at("count"));
    fixture.inner(&format!("touch {task}; echo >> {}; printf unix://{task}", count.display()));
    let folder = File::open(fixture.front().parent().unwrap()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.start())).collect();
        // All starts have found no proxy before one may create it.
        while fs::read(&count).map_or(0, |lines| lines.len()) < 4 {
            std::thread::yield_now();
        }
        flock(&folder, FlockOperation::Unlock).unwrap();
        for start in starts {
            assert_eq!(start.join().unwrap(), address);
        }
    });
    assert_eq!(fixture.proxies().len(), 1);
}

#[test]
fn start_stops_waiting_for_lock() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    let folder = File::open(fixture.front().parent().unwrap()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    check_stock(&fixture);
}

#[test]
fn socket_without_listener_is_replaced() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    drop(std::os::unix::net::UnixListener::bind(fixture.front()).unwrap());
    fixture.start();
    assert_eq!(number(&Caller::dial(&fixture.front()).of("Create", "c1", ""), 1), Some(42));
}

fn check_stock(fixture: &Fixture) {
    assert_eq!(fixture.start(), format!("unix://{}", fixture.task().display()));
    assert_eq!(fixture.proxies(), []);
    assert!(!fixture.front().exists());
}

#[test]
fn start_without_router_gets_no_proxy() {
    let (fixture, _inner) = Fixture::proxied();
    check_stock(&fixture);
    assert_eq!(fixture.invocation(), fixture.expected(&["start"], STOCK.as_ref()));
    assert!(fixture.log().contains("the router does not answer"), "{}", fixture.log());
}

#[test]
fn older_shim_gets_no_proxy() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    fixture.inner(&format!("touch -d '-1 hour' {0}; printf unix://{0}", fixture.task().display()));
    check_stock(&fixture);
}

#[test]
fn proxy_that_fails_to_start_is_skipped() {
    let (fixture, mut inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    inner.end();
    check_stock(&fixture);
    assert!(fixture.log().contains("no proxy: the proxy did not come up"), "{}", fixture.log());
}

#[test]
fn output_of_failed_start_passed_through() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    fixture.inner("echo out; echo err >&2; exit 7");
    let output = fixture.call(&["start"]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn output_without_address_passed_through() {
    let (fixture, _inner) = Fixture::proxied();
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    fixture.inner("echo vsock://3:1");
    assert_eq!(fixture.start(), "vsock://3:1\n");
    assert!(fixture.log().contains("no proxy: the answer of the shim's `start` has no"), "{}", fixture.log());
}
