//! Mode `wrapped`: the wrapper executes the inner shim, behind the router or as stock.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fake_router::FakeRouter;
use crate::fixture::{Fixture, STOCK};

const PRINTS: &str = "printf unix:///run/a.sock; exit 3";

fn check(fixture: &Fixture, action: &[&str], address: &Path) {
    let output = fixture.call(action);
    assert_eq!(fixture.invocation(), fixture.expected(action, address));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "unix:///run/a.sock");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(3), "the inner shim's own");
}

#[test]
fn shim_starts_behind_router() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("probe = \"5s\"");
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "wrapped", 0);
    check(&fixture, &["start"], &fixture.at("router.sock"));
    check(&fixture, &["-debug", "start"], &fixture.at("router.sock"));
    assert_eq!(fixture.log(), "");
}

#[test]
fn other_commands_passed_to_inner_shim_unchanged() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("");
    for action in [&["-bundle", "/b", "delete"][..], &["-v"], &["-info"], &[]] {
        check(&fixture, action, Path::new(STOCK));
    }
    assert_eq!(fixture.log(), "");
}

#[test]
fn shim_without_router_starts_as_stock() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("");
    check(&fixture, &["start"], Path::new(STOCK));
    let log = fixture.log();
    assert!(log.contains("the router does not answer") && log.contains("container c1"), "{log}");
    assert_eq!(log.lines().count(), 1);
}

#[test]
fn hung_router_skipped_after_probe_timeout() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("probe = \"300ms\"");
    let _never_accepts = UnixListener::bind(fixture.at("router.sock")).unwrap();
    let begun = Instant::now();
    check(&fixture, &["start"], Path::new(STOCK));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(fixture.log().contains("no answer within 300ms"), "{}", fixture.log());
}

#[test]
fn router_in_another_mode_skipped() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("probe = \"5s\"");
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "proxy", 0);
    check(&fixture, &["start"], Path::new(STOCK));
    assert!(fixture.log().contains("its source has mode \"proxy\""), "{}", fixture.log());
}

#[test]
fn runtime_table_found_with_and_without_coroner_in_name() {
    let fixture = Fixture::new(PRINTS);
    let (inner, router) = (fixture.at("containerd-shim-inner-v2"), fixture.at("router.sock"));
    // Without its table a wrapper has no router.
    let text = format!(
        "inner = {inner:?}\nsocket = {:?}\n[runtime.kata]\ninner = {inner:?}\nsocket = {router:?}\nprobe = \"5s\"\n",
        fixture.at("none.sock")
    );
    fs::write(fixture.at("shim.toml"), text).unwrap();
    let _router = FakeRouter::listen(&router, "wrapped", 0);
    for (name, address) in [
        ("containerd-shim-coroner-kata-v2", router.as_path()),
        ("containerd-shim-kata-v2", &router),
        ("/opt/bin/containerd-shim-kata-v2", &router),
        ("containerd-shim-coroner-v2", Path::new(STOCK)),
        ("containerd-shim-runc-v2", Path::new(STOCK)),
    ] {
        let output = fixture.call_as(name, &["start"]);
        assert_eq!(output.status.code(), Some(3), "{name}: {output:?}");
        assert_eq!(fixture.invocation(), fixture.expected(&["start"], address), "{name}");
    }
}

#[test]
fn invalid_file_ignored() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("hodl = \"1s\"");
    let _router = FakeRouter::listen(&fixture.at("router.sock"), "wrapped", 0);
    check(&fixture, &["start"], Path::new(STOCK));
    assert!(fixture.log().contains("unknown field `hodl`"), "{}", fixture.log());
}

#[test]
fn missing_inner_shim_reported() {
    let fixture = Fixture::new(PRINTS);
    fixture.configure("");
    fs::remove_file(fixture.at("containerd-shim-inner-v2")).unwrap();
    let output = fixture.call(&["start"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("cannot run") && stderr.contains("containerd-shim-inner-v2"), "{stderr}");
}
