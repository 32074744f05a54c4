//! `coroner doctor --write` puts the default runtime behind the wrapper, and takes it out again.

use std::fs;
use std::process::Command;

use coroner_tests::binary;
use coroner_tests::containerd::{STOCK, Version};
use coroner_tests::cri::Pod;
use coroner_tests::report::{print, timed};
use coroner_tests::wait::until;
use serde_json::Value;

use super::fixture::{END, Fixture, Mode, alone};

/// The first version that merges the tables of a drop-in.
const MERGES_DEEPLY: Version = Version(2, 1, 0);

/// What `coroner doctor` prints.
fn doctor(fixture: &Fixture, arguments: &[&str]) -> Value {
    let output = Command::new(binary::find("coroner", "coroner-cli").unwrap())
        .args(["doctor", "--json", "--config"])
        .arg(fixture.router.path("coroner.toml"))
        .arg("--containerd-config")
        .arg(fixture.containerd.path("config.toml"))
        .args(arguments)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The finding about the drop-in.
fn drop_in(fixture: &Fixture, arguments: &[&str]) -> Value {
    let document = doctor(fixture, arguments);
    let mut findings = document["findings"].as_array().unwrap().iter();
    let found = findings.find(|it| it["subject"] == "drop-in").expect("a finding about the drop-in");
    print(format_args!("doctor {arguments:?}: {found}"));
    found.clone()
}

/// What the shim of a new pod of the default runtime is.
async fn kind_of_default(fixture: &mut Fixture, name: &str) -> (Pod, Value) {
    let pod = fixture.cri.run_pod_as(&fixture.containerd, name, STOCK).await.unwrap();
    let document = doctor(fixture, &[]);
    let mut shims = document["shims"].as_array().unwrap().iter();
    let shim = shims.find(|it| it["id"] == pod.id.as_str()).expect("the pod's shim runs");
    (pod, shim["kind"].clone())
}

#[tokio::test]
async fn doctor_writes_the_drop_in_that_wraps_the_default_runtime() {
    let _turn = alone().await;
    let _timed = timed("doctor_writes_the_drop_in_that_wraps_the_default_runtime");
    let mut fixture = Fixture::start(Mode::Wrapped).await.unwrap();
    let main = fixture.containerd.path("config.toml");
    let text = fs::read_to_string(&main).unwrap();
    fs::write(&main, format!("imports = [\"conf.d/*.toml\"]\n{text}")).unwrap();
    if fixture.containerd.version() < MERGES_DEEPLY {
        let found = drop_in(&fixture, &["--write"]);
        assert_eq!(found["level"], "wrong", "{found}");
        assert!(found["message"].as_str().unwrap().contains("by hand"), "{found}");
        assert!(!main.with_file_name("conf.d").exists());
        return;
    }
    assert_eq!(kind_of_default(&mut fixture, "before").await.1, "stock");
    assert_eq!(drop_in(&fixture, &["--write"])["level"], "ok");
    fixture.containerd.stop().await.unwrap();
    fixture.containerd.start_again().await.unwrap();
    let (pod, kind) = kind_of_default(&mut fixture, "between").await;
    assert_eq!(kind, "wrapped");
    let container = fixture.cri.run(&pod, "killed", 32, "self 64").await.unwrap();
    assert_eq!(fixture.ruled("exited", &container).await.unwrap()["mode"], "wrapped");

    // Until containerd has read that the drop-in is gone, it starts the wrapper. `doctor` takes a
    // change within a second of containerd's start for an earlier one, so it is made again.
    until("doctor to report the removed drop-in", END, async || {
        drop_in(&fixture, &["--write"]);
        assert_eq!(drop_in(&fixture, &["--uninstall", "--write"])["level"], "ok");
        let document = doctor(&fixture, &[]);
        let mut messages =
            document["findings"].as_array().unwrap().iter().map(|it| it["message"].to_string());
        Ok(messages.find(|it| it.contains("was changed after containerd started")))
    })
    .await
    .unwrap();
    fixture.containerd.stop().await.unwrap();
    fixture.containerd.start_again().await.unwrap();
    assert_eq!(kind_of_default(&mut fixture, "after").await.1, "stock");
}
