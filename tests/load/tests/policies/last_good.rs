//! Invariant 8 across a restart: the last good version of a policy runs in place of a refused one,
//! until its file is removed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coroner_core::audit::Refused;
use coroner_core::mode::PolicyMode;
use coroner_policy::{CompileSettings, Host, PolicyManager, Settings};
use coroner_tests::binary::digest_of;
use coroner_tests::guests::component;
use tempfile::TempDir;

use super::settings;

/// A policy directory and a cache that outlive a router.
struct Node {
    directory: TempDir,
    cache: TempDir,
}

/// What a router runs: name, digest and mode of each policy; and what it refused.
type Runs = (Vec<(String, String, PolicyMode)>, Vec<Refused>);

impl Node {
    /// With a good `50-x` in mode `shadow`, which a router has run.
    fn new() -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() };
        node.drop_in("50-x.wasm", &component("passer").unwrap());
        node.drop_in("50-x.toml", b"mode = 'shadow'\n");
        assert_eq!(node.start(), (vec![node.good()], vec![]));
        node
    }

    fn drop_in(&self, name: &str, bytes: &[u8]) {
        fs::write(self.directory.path().join(name), bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    fn kept(&self) -> PathBuf {
        self.cache.path().join("last-good")
    }

    fn good(&self) -> (String, String, PolicyMode) {
        ("50-x".to_owned(), digest_of(&component("passer").unwrap()), PolicyMode::Shadow)
    }

    fn start(&self) -> Runs {
        self.start_with(Some(self.cache.path()), settings().compile)
    }

    /// What a router runs that starts now, without the built-in default.
    fn start_with(&self, cache: Option<&Path>, compile: CompileSettings) -> Runs {
        let (directory, cache) = (Some(self.directory.path().to_owned()), cache.map(Path::to_owned));
        let settings = Settings { directory, cache, compile, ..settings() };
        let manager = PolicyManager::start(Arc::new(Host::new(settings).unwrap()));
        let snapshot = manager.active_chain().now();
        let own = snapshot.policies.iter().filter(|it| it.name != "00-kubernetes");
        let runs = own.map(|it| (it.name.clone(), it.digest.clone(), it.mode)).collect();
        assert_eq!(manager.active_chain().reading().kept(), kept(manager.refused()));
        (runs, manager.refused().to_vec())
    }
}

fn kept(refused: &[Refused]) -> u64 {
    refused.iter().filter(|it| it.kept.is_some()).count() as u64
}

#[test]
fn last_good_policy_survives_restarts_until_it_is_removed() {
    let node = Node::new();
    node.drop_in("50-x.wasm", b"garbage");
    for _ in 0..2 {
        let (runs, refused) = node.start();
        assert_eq!(runs, [node.good()], "with its own file, in mode shadow");
        assert_eq!(refused[0].kept.as_ref(), Some(&node.good().1));
    }
    let no_compiler = CompileSettings { program: None, ..CompileSettings::default() };
    assert_eq!(node.start_with(Some(node.cache.path()), no_compiler).0, [node.good()]);
    node.remove("50-x.wasm");
    node.remove("50-x.toml");
    assert_eq!(node.start(), (vec![], vec![]));
    node.drop_in("50-x.wasm", b"garbage");
    let (runs, refused) = node.start();
    assert_eq!((runs, refused[0].kept.as_ref()), (vec![], None), "another policy of the same name");
}

#[test]
fn mistake_in_the_file_beside_it_runs_the_last_good_one() {
    let node = Node::new();
    node.drop_in("50-x.toml", b"mode = 'enforced'\n");
    let (runs, refused) = node.start();
    assert_eq!(runs, [node.good()]);
    assert!(refused[0].reason.contains("50-x.toml: mode: `enforced`"), "{refused:?}");
    let other = component("trap").unwrap();
    node.drop_in("50-x.wasm", &other);
    node.remove("50-x.toml");
    let runs = vec![("50-x".to_owned(), digest_of(&other), PolicyMode::Enforce)];
    assert_eq!(node.start(), (runs.clone(), vec![]));
    node.drop_in("50-x.wasm", b"garbage");
    assert_eq!(node.start().0, runs, "the newest good one");
}

#[test]
fn policy_that_was_switched_off_does_not_return() {
    let node = Node::new();
    node.drop_in("50-x.toml", b"mode = 'off'\n");
    assert_eq!(node.start(), (vec![], vec![]));
    node.drop_in("50-x.toml", b"mode = ");
    assert_eq!(node.start().0, []);
}

#[test]
fn last_good_policy_that_others_can_write_is_not_used() {
    let node = Node::new();
    node.drop_in("50-x.wasm", b"garbage");
    let mode =
        |mode| fs::set_permissions(node.kept().join("50-x"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    assert_eq!(node.start().0, []);
    mode(0o600);
    assert_eq!(node.start().0, [node.good()]);
    fs::set_permissions(node.kept(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(node.start().0, []);
}

#[test]
fn router_without_a_cache_keeps_nothing() {
    let node = Node::new();
    node.drop_in("50-x.wasm", b"garbage");
    assert_eq!(node.start_with(None, settings().compile).0, []);
}
