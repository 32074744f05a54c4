//! Kills in cgroups as container runtimes lay them out, made by hand: every layout, groups, and
//! more kills at once than the kernel's log describes. What the router published is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use coroner_tests::node::Node;
use coroner_tests::report::{print, timed};
use coroner_tests::wait::until;
use serde_json::Value;

use crate::script;

/// Cgroups of the default roots, `@` for the container's id. After `=`: a cgroup within it.
const LAYOUTS: [(&str, &str); 15] = [
    ("containerd, systemd driver", "kubepods.slice/kubepods-pod1.slice/cri-containerd-@.scope"),
    ("containerd, cgroupfs driver", "kubepods/burstable/pod1/@"),
    ("mixed drivers", "system.slice/kubepods-burstable-pod1.slice:cri-containerd:@"),
    ("mixed drivers, at the top", "kubepods-burstable-pod1.slice:cri-containerd:@"),
    ("crun, systemd driver", "kubepods.slice/kubepods-pod2.slice/cri-containerd-@.scope=container"),
    ("CRI-O", "kubepods.slice/kubepods-pod3.slice/crio-@.scope"),
    ("Docker, systemd driver", "system.slice/docker-@.scope"),
    ("Docker, cgroupfs driver", "docker/@"),
    ("kind", "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/cri-containerd-@.scope"),
    ("nerdctl", "system.slice/nerdctl-@.scope"),
    ("ctr", "k8s.io/@"),
    ("Podman", "machine.slice/libpod-@.scope"),
    ("ECS, systemd driver", "ecstasks.slice/ecstasks-1.slice/docker-@.scope"),
    ("ECS, cgroupfs driver", "ecs/1/@"),
    ("Docker in a pod", "kubepods/besteffort/pod4/@=docker/inner"),
];
/// Processes of a group that is killed.
const GROUPS: [u32; 3] = [1, 2, 400];
/// Kills at once: the kernel's log describes ten in five seconds.
const STORM: usize = 200;

/// The last kill is ruled within moments; this allows for emulation beside other work.
pub(crate) const PUBLISHED: Duration = Duration::from_secs(60);
pub(crate) const AUDIT: &str = "/var/log/coroner/audit.jsonl";

/// What was published of a container's kills.
#[derive(Debug, Default)]
struct Published {
    task_ooms: usize,
    victims: Vec<String>,
}

/// A container's id that is made of a number.
pub(crate) fn id(number: usize) -> String {
    format!("{number:064}")
}

/// Of all containers, from the audit file.
fn published(node: &Node) -> Result<BTreeMap<String, Published>> {
    let mut all = BTreeMap::<String, Published>::new();
    // A last line may not be whole yet.
    for line in node.run(&format!("sed '$d' {AUDIT}"))?.lines() {
        let record: Value = serde_json::from_str(line)?;
        let signal = &record["signal"];
        let Some(kill) = signal["event"].get("oom-kill") else { continue };
        let of = all.entry(signal["target"]["container-id"].as_str().unwrap().to_owned()).or_default();
        let actions = record["actions"].as_array().into_iter().flatten();
        of.task_ooms += actions.filter(|action| *action == "task-oom").count();
        of.victims.extend(kill["victim"]["comm"].as_str().map(str::to_owned));
    }
    Ok(all)
}

/// On a node where agent and router run.
pub(crate) fn kills_are_published_once_and_named(node: &Node) {
    let _timed = timed("kills_are_published_once_and_named");
    node.copy(&script("kills.sh"), "/tmp/kills.sh").unwrap();

    let paths = LAYOUTS.iter().enumerate().map(|(at, (_, path))| path.replace('@', &id(1000 + at)));
    node.run(&format!("sh /tmp/kills.sh one {}", paths.collect::<Vec<_>>().join(" "))).unwrap();
    for (at, size) in GROUPS.iter().enumerate() {
        let path = format!("kubepods.slice/kubepods-pod5.slice/cri-containerd-{}.scope", id(2000 + at));
        node.run(&format!("sh /tmp/kills.sh group {path} {size}")).unwrap();
    }
    let prefix = "kubepods.slice/kubepods-pod6.slice/cri-containerd-";
    node.run(&format!("sh /tmp/kills.sh storm {prefix} {STORM}")).unwrap();
    let counted = node.run("grep '^oom_kill ' /proc/vmstat").unwrap();
    print(format_args!("the kernel counts: {}", counted.trim()));

    let ids: Vec<String> = (0..LAYOUTS.len())
        .map(|at| 1000 + at)
        .chain((0..GROUPS.len()).map(|at| 2000 + at))
        .chain(0..STORM)
        .map(id)
        .collect();
    let all_published = async || {
        let all = published(node)?;
        Ok(ids.iter().all(|id| all.contains_key(id)).then_some(all))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = runtime.block_on(until("all kills to be published", PUBLISHED, all_published)).unwrap();
    let check = |what: &str, number: usize| {
        let published = all.get(&id(number));
        assert!(published.is_some_and(|it| it.task_ooms == 1), "{what}: {published:?}\n{all:#?}");
        published.is_some_and(|it| it.victims.iter().any(|it| it == "tail"))
    };
    for (at, (what, _)) in LAYOUTS.iter().enumerate() {
        assert!(check(what, 1000 + at), "{what}: its victim is not named\n{all:#?}");
    }
    for (at, size) in GROUPS.iter().enumerate() {
        assert!(check(&format!("a group of {size}"), 2000 + at), "a group of {size}\n{all:#?}");
    }
    let named = (0..STORM).filter(|at| check("one of many at once", *at)).count();
    print(format_args!("{STORM} kills at once: each published once, {named} with their victim"));
    assert!(named > STORM / 2, "the kernel's log describes ten in five seconds");
}
