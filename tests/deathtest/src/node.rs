//! The node that the containers run on: its cgroups and its processes.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

const HIERARCHIES: &str = "/sys/fs/cgroup";

/// How the runtime makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// As units of systemd: a cgroup is named as a slice.
    Systemd,
    /// By itself: a cgroup is named by its path.
    Cgroupfs,
}

/// The cgroups of a run's pods.
#[derive(Debug)]
pub(crate) struct Cgroups {
    parent: String,
    /// Those above the pods' that were not there before, the innermost first.
    made: Vec<String>,
    pods: Vec<String>,
}

impl Cgroups {
    /// Below `parent`, or where the runtime's driver can make them. Below `kubepods`, Coroner takes
    /// them for pods, as it does those of a kubelet.
    pub(crate) fn new(parent: Option<&str>, driver: Driver) -> Self {
        let usual = match driver {
            Driver::Systemd => "kubepods-deathtest.slice",
            Driver::Cgroupfs => "/kubepods/deathtest",
        };
        let parent = parent.unwrap_or(usual).trim_end_matches('/').to_owned();
        let made = paths(&parent).filter(|path| folders(path).is_empty()).collect();
        Self { parent, made, pods: Vec::new() }
    }

    /// The cgroup of a pod, as the kubelet names it.
    pub(crate) fn pod(&mut self, uid: &str) -> String {
        let pod = match self.parent.strip_suffix(".slice") {
            Some(slice) => format!("{slice}-pod{uid}.slice"),
            None => format!("{}/pod{uid}", self.parent),
        };
        self.pods.push(pod.clone());
        pod
    }

    /// Removes the cgroups that were made. Slices are systemd's.
    pub(crate) fn remove(&self) {
        for path in self.pods.iter().filter(|pod| !is_slice(pod)).chain(&self.made) {
            for folder in folders(path) {
                // One that is in use cannot be removed.
                fs::remove_dir(folder).ok();
            }
        }
    }
}

fn is_slice(cgroup: &str) -> bool {
    cgroup.ends_with(".slice")
}

/// A cgroup and those above it, the innermost first; none for a slice.
fn paths(cgroup: &str) -> impl Iterator<Item = String> {
    let cgroup = if is_slice(cgroup) { "" } else { cgroup };
    Path::new(cgroup)
        .ancestors()
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| !path.is_empty() && path != "/")
}

/// The folders of a cgroup that exist: one on version 2, one for each controller on version 1.
fn folders(cgroup: &str) -> Vec<PathBuf> {
    let below = cgroup.trim_start_matches('/');
    let hierarchies = if is_version_2() {
        vec![PathBuf::from(HIERARCHIES)]
    } else {
        fs::read_dir(HIERARCHIES).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    hierarchies.into_iter().map(|hierarchy| hierarchy.join(below)).filter(|path| path.is_dir()).collect()
}

/// Whether the node has cgroup v2 alone.
pub(crate) fn is_version_2() -> bool {
    Path::new(HIERARCHIES).join("cgroup.controllers").exists()
}

/// Whether a process is in a cgroup that is named after this container. That of a virtual machine
/// is not: its container has a kernel of its own.
pub(crate) fn is_in_cgroup_of(pid: Pid, container: &str) -> bool {
    let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    fs::read_to_string(path).is_ok_and(|cgroups| cgroups.contains(container))
}

/// Whether a kubelet runs on this node.
pub(crate) fn has_kubelet() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("comm")).ok())
        .any(|comm| comm.trim_end() == "kubelet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_as_the_driver_needs_it() {
        let pod = |parent: Option<&str>, driver| Cgroups::new(parent, driver).pod("7");
        assert_eq!(pod(None, Driver::Systemd), "kubepods-deathtest-pod7.slice");
        assert_eq!(pod(None, Driver::Cgroupfs), "/kubepods/deathtest/pod7");
        assert_eq!(pod(Some("/a/"), Driver::Systemd), "/a/pod7");
        assert_eq!(pod(Some("a.slice"), Driver::Cgroupfs), "a-pod7.slice");
    }

    #[test]
    fn cgroups_above_pods_are_listed_from_the_inside() {
        let of = |cgroup: &str| paths(cgroup).collect::<Vec<_>>();
        assert_eq!(of("/a/b"), ["/a/b", "/a"]);
        assert_eq!(of("a/b"), ["a/b", "a"]);
        assert!(of("a-b.slice").is_empty());
    }

    #[test]
    fn process_in_no_container_is_in_no_cgroup_of_one() {
        assert!(!is_in_cgroup_of(rustix::process::getpid(), &"0123456789abcdef".repeat(4)));
    }
}
