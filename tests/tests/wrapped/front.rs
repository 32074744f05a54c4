//! Mode `proxy` puts a proxy in front of the shim, which containerd dials; `coroner doctor` reports
//! a shim without one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use coroner_tests::binary;
use coroner_tests::containerd::WRAPPED;
use coroner_tests::cri::Pod;
use coroner_tests::report::{print, timed};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use super::fixture::{Fixture, Mode, alone};

/// The wrapper's process in front of a shim.
struct Proxy {
    pid: u32,
    inner: String,
}

#[tokio::test]
async fn proxied_pod_is_dialled_through_its_proxy() {
    let _turn = alone().await;
    let _timed = timed("proxied_pod_is_dialled_through_its_proxy");
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "fronted", WRAPPED).await.unwrap();
    let log = fs::read_to_string(fixture.containerd.path("shim.log")).unwrap_or_default();
    assert_eq!(log, "", "the wrapper logs each fallback");
    let proxy = proxy_of(&pod).expect("the pod's shim has a proxy");
    let record = record(&fixture, &pod);
    print(format_args!("containerd {:?} dials: {record}", fixture.containerd.version()));
    assert!(record.contains(&format!("unix://{}.c", proxy.inner)), "{} behind {record}", proxy.inner);
    assert_eq!(without_proxy(&fixture), None);

    // While another start holds the sockets' folder, the wrapper falls back to no proxy. containerd
    // may have a root of its own: the folder is opened in the proxy's.
    let folder = PathBuf::from(format!("/proc/{}/root{}", proxy.pid, proxy.inner));
    let folder = File::open(folder.parent().unwrap()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    let bare = fixture.cri.run_pod_as(&fixture.containerd, "bare", WRAPPED).await.unwrap();
    flock(&folder, FlockOperation::Unlock).unwrap();
    assert!(proxy_of(&bare).is_none(), "the folder was locked");
    let finding = without_proxy(&fixture).expect("doctor reports the pod without a proxy");
    print(format_args!("doctor: {finding}"));
    let message = finding["message"].as_str().unwrap();
    assert_eq!(finding["level"], "wrong");
    assert!(message.contains(&format!("k8s.io/{}", &bare.id[..12])), "{message}");
    assert!(!message.contains(&pod.id[..12]), "{message}");
}

/// The proxy of a pod's shim, by its arguments.
fn proxy_of(pod: &Pod) -> Option<Proxy> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<&str> = line.split('\0').collect();
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| *argument == name)?;
            arguments.get(at + 1).copied()
        };
        let is_it = arguments.get(1) == Some(&"proxy") && after("-id") == Some(pod.id.as_str());
        is_it.then_some(Proxy { pid, inner: after("--inner")?.to_owned() })
    })
}

/// What containerd keeps of the shim's `start` in the bundle, for its next start: a file of
/// containerd 2, or of the shim itself before.
fn record(fixture: &Fixture, pod: &Pod) -> String {
    let bundle = fixture.containerd.path("state/io.containerd.runtime.v2.task/k8s.io").join(&pod.id);
    let file = ["bootstrap.json", "address"].map(|name| bundle.join(name)).into_iter().find(|it| it.exists());
    fs::read_to_string(file.expect("the bundle has the shim's address")).unwrap()
}

/// The finding of `coroner doctor` about shims without a proxy.
fn without_proxy(fixture: &Fixture) -> Option<Value> {
    let output = Command::new(binary::find("coroner", "coroner-cli").unwrap())
        .args(["doctor", "--json", "--config"])
        .arg(fixture.router.path("coroner.toml"))
        .arg("--containerd-config")
        .arg(fixture.containerd.path("config.toml"))
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut findings = document["findings"].as_array().unwrap().iter();
    findings.find(|it| it["message"].as_str().unwrap().contains("have no proxy")).cloned()
}
