//! Mode `wrapped`: the wrapper becomes the inner shim, behind the router or as stock.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::{Bench, STOCK};
use crate::fake_router::FakeRouter;

const SAYS: &str = "printf unix:///run/a.sock; exit 3";

fn check(bench: &Bench, action: &[&str], address: &Path) {
    let output = bench.call(action);
    assert_eq!(bench.heard(), bench.expected(action, address));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "unix:///run/a.sock");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(3), "the inner shim's own");
}

#[test]
fn a_shim_starts_behind_the_router() {
    let bench = Bench::new(SAYS);
    bench.configure("probe = \"5s\"");
    let _router = FakeRouter::listen(&bench.at("router.sock"), "wrapped", 0);
    check(&bench, &["start"], &bench.at("router.sock"));
    check(&bench, &["-debug", "start"], &bench.at("router.sock"));
    assert_eq!(bench.log(), "");
}

#[test]
fn all_else_than_start_goes_to_the_inner_shim_as_it_is() {
    let bench = Bench::new(SAYS);
    bench.configure("");
    for action in [&["-bundle", "/b", "delete"][..], &["-v"], &["-info"], &[]] {
        check(&bench, action, Path::new(STOCK));
    }
    assert_eq!(bench.log(), "");
}

#[test]
fn without_a_router_a_shim_starts_as_stock() {
    let bench = Bench::new(SAYS);
    bench.configure("");
    check(&bench, &["start"], Path::new(STOCK));
    let log = bench.log();
    assert!(log.contains("nobody answers") && log.contains("container c1"), "{log}");
    assert_eq!(log.lines().count(), 1);
}

#[test]
fn a_hung_router_is_passed_by_within_the_probe() {
    let bench = Bench::new(SAYS);
    bench.configure("probe = \"300ms\"");
    let _never_accepts = UnixListener::bind(bench.at("router.sock")).unwrap();
    let begun = Instant::now();
    check(&bench, &["start"], Path::new(STOCK));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(bench.log().contains("no answer within 300ms"), "{}", bench.log());
}

#[test]
fn a_router_for_another_mode_is_passed_by() {
    let bench = Bench::new(SAYS);
    bench.configure("probe = \"5s\"");
    let _router = FakeRouter::listen(&bench.at("router.sock"), "proxy", 0);
    check(&bench, &["start"], Path::new(STOCK));
    assert!(bench.log().contains("its source has mode \"proxy\""), "{}", bench.log());
}

#[test]
fn a_mistaken_file_counts_as_none() {
    let bench = Bench::new(SAYS);
    bench.configure("hodl = \"1s\"");
    let _router = FakeRouter::listen(&bench.at("router.sock"), "wrapped", 0);
    check(&bench, &["start"], Path::new(STOCK));
    assert!(bench.log().contains("unknown field `hodl`"), "{}", bench.log());
}

#[test]
fn an_inner_shim_that_is_not_there_is_told() {
    let bench = Bench::new(SAYS);
    bench.configure("");
    fs::remove_file(bench.at("containerd-shim-inner-v2")).unwrap();
    let output = bench.call(&["start"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot run") && said.contains("containerd-shim-inner-v2"), "{said}");
}
