//! Imports point to lower layers only, as docs/internals/architecture.md lists them, and the
//! examples are valid.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod circles;
mod names;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn example_configuration_is_good() {
    let text = fs::read_to_string(root().join("examples/coroner.toml")).unwrap();
    let config = coroner::node::config::Config::parse(&text).unwrap();
    assert_eq!((config.sources.len(), config.sinks.len()), (1, 2));
}

#[test]
fn example_with_sinks_is_good() {
    let text = fs::read_to_string(root().join("examples/sinks.toml")).unwrap();
    let config = coroner::node::config::Config::parse(&text).unwrap();
    assert_eq!((config.sinks.len(), config.routes.len()), (4, 3), "the audit's route is its own");
}

#[test]
fn example_for_crio_is_good() {
    let text = fs::read_to_string(root().join("examples/crio.toml")).unwrap();
    let config = coroner::node::config::Config::parse(&text).unwrap();
    assert_eq!((config.containerd.is_none(), config.sinks[0].kind.is_lifecycle()), (true, true));
}

#[test]
fn sinks_page_shows_good_sinks() {
    let page = fs::read_to_string(root().join("docs/operating/sinks.md")).unwrap();
    let block = |it: &str| it.split("```").next().unwrap().to_owned();
    let shown: Vec<String> = page.split("```toml\n").skip(1).map(block).collect();
    let text = format!("[guests]\n{}", shown.concat());
    let config = coroner::node::config::Config::parse(&text).unwrap();
    assert_eq!((shown.len(), config.sinks.len()), (4, 4));
}

#[test]
fn configuration_page_shows_a_good_file() {
    let page = fs::read_to_string(root().join("docs/reference/configuration.md")).unwrap();
    let block = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    coroner::node::config::Config::parse(block).unwrap();
}

#[test]
fn systemd_accepts_the_unit_for_guest_images() {
    let image = tempfile::tempdir().unwrap();
    let (units, programs) = (image.path().join("etc/systemd/system"), image.path().join("usr/sbin"));
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(&programs).unwrap();
    let unit = "coroner-agent.service";
    fs::copy(root().join("examples/deploy/guest").join(unit), units.join(unit)).unwrap();
    fs::copy("/bin/true", programs.join("coroner-agent")).unwrap();
    let verify = std::process::Command::new("systemd-analyze")
        .args(["verify", "--root"])
        .arg(image.path())
        .arg(unit)
        .output()
        .expect("systemd-analyze, of the package systemd");
    // What it does not know it only warns of.
    assert!(verify.status.success() && verify.stderr.is_empty(), "{verify:?}");
}
