//! The facade without policies: its errors, its status and its shutdown.

use std::path::Path;
use std::time::Duration;

use super::*;
use coroner_sources::shim::{Exit, OomKill};

const DEADLINE: Duration = Duration::from_secs(5);

fn builder(folder: &Path) -> RouterBuilder {
    let audit = folder.join("audit.jsonl");
    let config = format!("[[sink]]\nname = \"a\"\ntype = \"jsonl\"\npath = \"{}\"", audit.display());
    Router::builder().config(config).directory(folder.join("router"))
}

#[test]
fn start_outside_of_a_runtime_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let started = builder(folder.path()).start();
    assert!(matches!(started, Err(Error::NoRuntime)), "{started:?}");
}

#[tokio::test]
async fn start_lacks_a_setting_or_lists_every_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Router::builder().config("").start();
    assert!(matches!(missing, Err(Error::Missing { setting: "directory" })), "{missing:?}");
    let missing = Router::builder().directory(folder.path()).start();
    assert!(matches!(missing, Err(Error::Missing { setting: "config" })), "{missing:?}");
    let wrong = builder(folder.path()).config("node = 1\n[journal]\nsize = 1").start();
    let Err(Error::Config { mistakes }) = wrong else { panic!("{wrong:?}") };
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    let below_a_file = folder.path().join("file");
    std::fs::write(&below_a_file, "").unwrap();
    let started = builder(folder.path()).directory(below_a_file.join("router")).start();
    assert!(matches!(started, Err(Error::Directory { .. })), "{started:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_router_in_a_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let router = builder(folder.path()).start().unwrap();
    let second = builder(folder.path()).start();
    assert!(matches!(second, Err(Error::Start { .. })), "{second:?}");
    router.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_is_ruled_until_the_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let router = builder(folder.path()).name("my-shim").start().unwrap();
    router.created("c", "/none", None).await.unwrap();
    router.oom_kill(OomKill::new("c").total(1)).await.unwrap();
    assert_eq!(router.exit(Exit::new("c", 137).pid(7)).await.unwrap(), 137);
    let status = router.status().await.unwrap();
    assert_eq!((status.sources[0].source.as_str(), status.sources[0].signals), ("my-shim", 2));
    let refused = router.oom_kill(OomKill::new("../c")).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");

    let other = router.clone();
    router.shutdown(DEADLINE).await.unwrap();
    // Of any handle, and again.
    other.shutdown(DEADLINE).await.unwrap();
    let after = other.exit(Exit::new("c", 137)).await;
    assert!(matches!(after, Err(Error::Stopping)), "{after:?}");
    assert!(matches!(other.status().await, Err(Error::Stopping)));
}

#[tokio::test(flavor = "multi_thread")]
async fn last_dropped_handle_shuts_the_router_down() {
    let folder = tempfile::tempdir().unwrap();
    let router = builder(folder.path()).start().unwrap();
    let mut ended = router.ended();
    drop(router);
    let ended = tokio::time::timeout(2 * DEADLINE, ended.wait_for(Option::is_some)).await;
    assert!(matches!(ended.unwrap().unwrap().as_ref(), Some(Ok(0))));
}
