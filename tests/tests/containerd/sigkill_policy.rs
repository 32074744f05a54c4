//! The exit reason changes by dropping a file into a directory, while the router runs.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use coroner_tests::binary;
use coroner_tests::containerd::{Containerd, IMAGE};
use coroner_tests::cri::{Container, Cri, NAMESPACE, Pod};
use coroner_tests::events::OOM;
use coroner_tests::report::{print, timed};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::beside::{Coroner, END, NODE, alone};

const POLICY: &str = "50-sigkill-is-oom";

#[tokio::test]
async fn sigkill_is_ruled_oom_while_its_policy_is_loaded() {
    let _turn = alone().await;
    let _timed = timed("sigkill_is_ruled_oom_while_its_policy_is_loaded");
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "sigkill").await.unwrap();
    let coroner = Coroner::start(&containerd).await.unwrap();
    let binary = binary::digest(coroner.router.binary()).unwrap();

    let before = killed_from_the_host(&mut cri, &pod, "before").await.unwrap();
    let ruled = coroner.ruled("exited", &before).await.unwrap();
    let (_, reading) = cri.readings(&before, END).await.unwrap();
    print(format_args!("without the policy: {reading}"));
    assert_eq!(reading.to_string(), "Error/137");
    assert_eq!(ruled["actions"], json!([]), "{ruled:#}");

    let policy = coroner.router.policies().join(POLICY);
    let bytes = fs::read(binary::bundled_policy("sigkill-is-oom").unwrap()).unwrap();
    fs::write(policy.with_extension("toml"), "[config]\nassume_no_kill_requests = true\n").unwrap();
    let renamed = unix_ms();
    coroner.router.drop_in(&format!("{POLICY}.wasm"), &bytes).unwrap();
    let chain = coroner.swapped(2).await.unwrap();
    print(format_args!("from the rename to the chain that has it: {} ms", at_ms(&chain) - renamed));

    let after = killed_from_the_host(&mut cri, &pod, "after").await.unwrap();
    let ruled = coroner.ruled("exited", &after).await.unwrap();
    let delivered = coroner.delivered(&ruled, OOM).await.unwrap();
    let (first, reading) = cri.readings(&after, END).await.unwrap();
    print(format_args!("with the policy: first {first}, final {reading}"));
    assert_eq!(reading.to_string(), "OOMKilled/137");
    assert_eq!(delivered["outcome"], "acked", "{delivered:#}");
    check_ruling(&ruled, &binary::digest(&policy.with_extension("wasm")).unwrap());
    check_identity(&ruled["signal"]["target"], &pod, &after);

    let removed = unix_ms();
    fs::remove_file(policy.with_extension("wasm")).unwrap();
    let chain = coroner.swapped(3).await.unwrap();
    print(format_args!("from its removal to the chain without it: {} ms", at_ms(&chain) - removed));
    let last = killed_from_the_host(&mut cri, &pod, "last").await.unwrap();
    let ruled = coroner.ruled("exited", &last).await.unwrap();
    let (_, reading) = cri.readings(&last, END).await.unwrap();
    print(format_args!("without it again: {reading}"));
    assert_eq!(reading.to_string(), "Error/137");
    assert_eq!((&ruled["actions"], &ruled["generation"]), (&json!([]), &json!(3)), "{ruled:#}");
    assert_eq!(binary::digest(coroner.router.binary()).unwrap(), binary, "the router's binary has changed");
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
    since.as_millis().try_into().expect("milliseconds fit")
}

fn at_ms(chain: &Value) -> u64 {
    chain["at-ms"].as_u64().expect("a chain record has its time")
}

async fn killed_from_the_host(cri: &mut Cri, pod: &Pod, name: &str) -> Result<Container> {
    let container = cri.run(pod, name, 32, "pause").await?;
    kill_process(cri.pid(&container).await?, Signal::KILL)?;
    Ok(container)
}

fn check_ruling(ruled: &Value, digest: &str) {
    assert_eq!(ruled["mode"], "beside");
    assert_eq!(ruled["actions"], json!(["task-oom"]), "{ruled:#}");
    assert_eq!(ruled["illegal"], Value::Null, "{ruled:#}");
    assert_eq!(ruled["signal"]["event"]["exited"]["status"], 137, "{ruled:#}");
    let rulings = ruled["rulings"].as_array().expect("a ruled record has rulings");
    let ruling =
        rulings.iter().find(|ruling| ruling["policy"] == POLICY).expect("the dropped policy has ruled");
    assert_eq!(ruling["digest"], digest, "the bytes that ruled are those that were dropped");
    assert_eq!(ruling["fault"], Value::Null);
    let decision = &ruling["ruling"]["decide"];
    assert_eq!(decision["actions"], json!(["task-oom"]), "{ruling:#}");
    assert!(decision["because"].as_str().is_some_and(|because| !because.is_empty()), "{ruling:#}");
}

fn check_identity(target: &Value, pod: &Pod, container: &Container) {
    assert_eq!(target["node"], NODE);
    assert_eq!(target["containerd-namespace"], "k8s.io", "{target:#}");
    assert_eq!(target["sandbox-id"], pod.id.as_str(), "{target:#}");
    assert_eq!(target["container-id"], container.id.as_str(), "{target:#}");
    let owner = &target["owner"];
    assert_eq!(owner["pod"], pod.name.as_str(), "{target:#}");
    assert_eq!(owner["namespace"], NAMESPACE, "{target:#}");
    assert_eq!(owner["container"], container.name.as_str(), "{target:#}");
    assert_eq!(owner["image"], IMAGE, "{target:#}");
}
