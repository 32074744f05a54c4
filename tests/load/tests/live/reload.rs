//! However a directory is changed, the router sees it, once, and whole.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Duration;

use coroner_tests::guests::{component, wasi_component};
use coroner_tests::router::Router;
use rustix::process::Signal;
use serde_json::Value;

use super::{ASSUME, Fixture, sigkill_is_oom};

const DEADLINE: Duration = Duration::from_secs(30);

fn names(listing: &Value) -> Vec<&str> {
    listing["chain"].as_array().unwrap().iter().map(|it| it["policy"].as_str().unwrap()).collect()
}

async fn wait_names(router: &Router, expect: &[&str]) -> Value {
    router.wait_listed(&format!("{expect:?}"), |it| names(it) == expect).await.unwrap()
}

#[tokio::test]
async fn renames_editors_slow_copies_and_bursts_are_reloaded() {
    let mut fixture = Fixture::start("beside", "").await;
    let router = &fixture.router;
    let (policies, policy) = (router.policies(), sigkill_is_oom());
    router.drop_in("50-x.wasm", &policy).unwrap();
    wait_names(router, &["00-kubernetes", "50-x"]).await;

    // As an editor saves: a backup beside, the old file renamed away, the new one written.
    fs::write(policies.join("50-x.toml"), "mode = 'shadow'\n").unwrap();
    router.wait_listed("the shadow", |it| it["chain"][1]["mode"] == "shadow").await.unwrap();
    fs::rename(policies.join("50-x.toml"), policies.join(".50-x.toml.swp")).unwrap();
    fs::write(policies.join("50-x.toml"), ASSUME).unwrap();
    router.wait_listed("enforced again", |it| it["chain"][1]["mode"] == "enforce").await.unwrap();

    // A copy that stops half-done is refused, and loaded when it is whole; meanwhile the last good
    // one stays.
    let digest = |it: &Value| it["chain"][1]["digest"].clone();
    let good = digest(&router.request(&["policy", "list"]).unwrap());
    let passer = component("passer").unwrap();
    let mut copy = fs::File::create(policies.join("50-x.wasm")).unwrap();
    copy.write_all(&passer[..passer.len() / 2]).unwrap();
    let half = router.wait_listed("a refusal", |it| !it["refused"][0].is_null()).await.unwrap();
    assert_eq!((digest(&half), &half["refused"][0]["kept"]), (good.clone(), &good), "{half:#}");
    copy.write_all(&passer[passer.len() / 2..]).unwrap();
    drop(copy);
    // The configuration of the old one does not apply to this one.
    let whole = router.wait_listed("the whole", |it| digest(it) != good && it["refused"][0].is_null());
    let whole = whole.await.unwrap();

    // A burst: of a hundred changes the last one counts, in far fewer chains.
    for turn in 0..100 {
        let mode = if turn % 2 == 0 { "shadow" } else { "enforce" };
        router
            .drop_in("50-x.toml", format!("mode = '{mode}'\n[config]\nturn = {turn}\n").as_bytes())
            .unwrap();
    }
    let last = router.request(&["policy", "reload"]).unwrap();
    let inspected = router.request(&["policy", "inspect", "50-x"]).unwrap();
    assert_eq!(inspected["config"]["turn"], 99, "{inspected:#}");
    let chains = last["generation"].as_u64().unwrap() - whole["generation"].as_u64().unwrap();
    assert!(chains < 50, "{chains} chains for one burst");

    // Written again with what is there: nothing is swapped.
    let before = router.request(&["policy", "reload"]).unwrap();
    fs::write(policies.join("50-x.wasm"), &passer).unwrap();
    let same = router.request(&["policy", "reload"]).unwrap();
    assert_eq!((&same["changed"], &same["generation"]), (&false.into(), &before["generation"]));

    fs::remove_file(policies.join("50-x.toml")).unwrap();
    fs::remove_file(policies.join("50-x.wasm")).unwrap();
    wait_names(router, &["00-kubernetes"]).await;
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn config_map_is_swapped_whole() {
    let mut fixture = Fixture::start("beside", "").await;
    let policies = fixture.router.policies();
    let version = |name: &str, toml: &str| {
        fs::create_dir(policies.join(name)).unwrap();
        fs::write(policies.join(name).join("50-x.wasm"), sigkill_is_oom()).unwrap();
        fs::write(policies.join(name).join("50-x.toml"), toml).unwrap();
    };
    // As the kubelet does it: a folder a version, one link to it, and links through that link.
    let point = |name: &str| {
        symlink(name, policies.join("..data_tmp")).unwrap();
        fs::rename(policies.join("..data_tmp"), policies.join("..data")).unwrap();
    };
    version("..2026_1", "mode = 'shadow'");
    point("..2026_1");
    for file in ["50-x.wasm", "50-x.toml"] {
        symlink(format!("..data/{file}"), policies.join(file)).unwrap();
    }
    let first =
        fixture.router.wait_listed("the first", |it| it["chain"][1]["mode"] == "shadow").await.unwrap();
    version("..2026_2", ASSUME);
    point("..2026_2");
    let second =
        fixture.router.wait_listed("the next", |it| it["chain"][1]["mode"] == "enforce").await.unwrap();
    let chains = second["generation"].as_u64().unwrap() - first["generation"].as_u64().unwrap();
    assert_eq!(chains, 1, "both files at once");
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn removed_directory_keeps_the_last_good_chain() {
    let mut fixture = Fixture::start("beside", "").await;
    let router = &fixture.router;
    router.drop_in("50-x.wasm", &sigkill_is_oom()).unwrap();
    wait_names(router, &["00-kubernetes", "50-x"]).await;
    let aside = router.path("aside");
    fs::rename(router.policies(), &aside).unwrap();
    let gone = router.wait_listed("the problem", |it| it["problem"].is_string()).await.unwrap();
    assert_eq!(names(&gone), ["00-kubernetes", "50-x"]);
    // Another in its place, made and filled.
    fs::create_dir(router.policies()).unwrap();
    router.drop_in("60-y.wasm", &component("passer").unwrap()).unwrap();
    let back = wait_names(router, &["00-kubernetes", "60-y"]).await;
    assert!(back["problem"].is_null());
    // And it is watched: the old one's inode is no longer of interest.
    fs::remove_file(router.policies().join("60-y.wasm")).unwrap();
    wait_names(router, &["00-kubernetes"]).await;
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn sighup_and_polling_reload_without_a_directory_event() {
    let mut fixture = Fixture::start("beside", "poll = \"50ms\"").await;
    fixture.router.signal(Signal::HUP).unwrap();
    fixture.router.wait_logged("SIGHUP: policies reloaded", 1, DEADLINE).await.unwrap();
    // Through a link to a file elsewhere: the directory has no event for that.
    let elsewhere = fixture.router.path("elsewhere.wasm");
    fs::write(&elsewhere, sigkill_is_oom()).unwrap();
    symlink(&elsewhere, fixture.router.policies().join("50-x.wasm")).unwrap();
    let first = wait_names(&fixture.router, &["00-kubernetes", "50-x"]).await;
    fs::write(&elsewhere, component("passer").unwrap()).unwrap();
    let other = |it: &Value| it["chain"][1]["digest"] != first["chain"][1]["digest"];
    fixture.router.wait_listed("what the link leads to", other).await.unwrap();
    fixture.router.stop().await.unwrap();
}

/// Such a policy waits for its streams, which a thread of the router's own runtime must not do.
#[tokio::test]
async fn wasi_policy_is_loaded_at_start_and_rules() {
    let mut fixture = Fixture::start("beside", "").await;
    fixture.router.drop_in("50-clock.wasm", &wasi_component("clock").unwrap()).unwrap();
    wait_names(&fixture.router, &["00-kubernetes", "50-clock"]).await;
    fixture.router.stop().await.unwrap();
    fixture.router.start_again().await.unwrap();
    fixture.kill("c", 1);
    fixture.dealt_with().await;
    let inspected = fixture.router.request(&["policy", "inspect", "50-clock"]).unwrap();
    assert_eq!(
        (&inspected["decided"], &inspected["faults"]),
        (&1.into(), &serde_json::json!({})),
        "{inspected:#}"
    );
    assert!(fixture.router.logged("policy log").unwrap() > 0, "what it prints is in the log");
    fixture.router.stop().await.unwrap();
}
