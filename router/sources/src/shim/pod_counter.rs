//! The kill counters of pods, the second witness of an OOM kill. systemd and runc remove a
//! container's cgroup within milliseconds of its end, and its own counter with it. The pod's cgroup
//! above stays, and on cgroup v2 its counter has the kills of all cgroups below it.
//!
//! ```text
//!   pod's counter - at the start - reported of its containers = kills that no counter showed
//! ```

use std::collections::{BTreeSet, HashMap};

use coroner_cgroup::{Hierarchy, Version};
use coroner_core::signal::ContainerId;

/// The counters of the pods of a source's containers, by the pod's cgroup.
#[derive(Debug, Default)]
pub(super) struct PodCounters(HashMap<String, PodCounter>);

#[derive(Debug)]
struct PodCounter {
    /// Kills that the counter had when the pod's first container was created.
    baseline: u64,
    /// Kills reported since, of all its containers.
    reported: u64,
    containers: BTreeSet<ContainerId>,
}

impl PodCounters {
    /// Adds a container. `unreported`: kills in its own counter that are not reported yet, if it
    /// can be read; otherwise only a pod that is counted since before can be its witness.
    pub(super) fn add(
        &mut self,
        hierarchy: &Hierarchy,
        id: &ContainerId,
        cgroup: &str,
        unreported: Option<u64>,
    ) {
        let Some(pod) = pod_of(cgroup).filter(|_| hierarchy.version() == Version::V2) else { return };
        if let Some(counter) = self.0.get_mut(pod) {
            counter.containers.insert(id.clone());
            return;
        }
        let (Some(unreported), Ok(kills)) = (unreported, hierarchy.kills(pod)) else { return };
        let baseline = kills.total.saturating_sub(unreported);
        let containers = BTreeSet::from([id.clone()]);
        self.0.insert(pod.to_owned(), PodCounter { baseline, reported: 0, containers });
    }

    /// Kills of a container in this cgroup were reported.
    pub(super) fn reported(&mut self, cgroup: &str, kills: u64) {
        if let Some(counter) = pod_of(cgroup).and_then(|pod| self.0.get_mut(pod)) {
            counter.reported = counter.reported.saturating_add(kills);
        }
    }

    /// The other containers of its pod.
    pub(super) fn siblings(&self, id: &ContainerId, cgroup: &str) -> Vec<ContainerId> {
        let counter = pod_of(cgroup).and_then(|pod| self.0.get(pod));
        counter.into_iter().flat_map(|it| &it.containers).filter(|it| *it != id).cloned().collect()
    }

    /// Kills in the container's pod that were not reported of any container. `None`: the pod is not
    /// this one's witness, or its counter cannot be read.
    pub(super) fn unreported(&self, hierarchy: &Hierarchy, id: &ContainerId, cgroup: &str) -> Option<u64> {
        let pod = pod_of(cgroup)?;
        let counter = self.0.get(pod).filter(|it| it.containers.contains(id))?;
        let total = hierarchy.kills(pod).ok()?.total;
        // A pod's cgroup that was made again under its name counts from zero.
        total.checked_sub(counter.baseline)?.checked_sub(counter.reported)
    }

    /// Takes what is counted now for reported: the kills of containers that were recovered.
    pub(super) fn rebase(&mut self, hierarchy: &Hierarchy) {
        self.0.retain(|pod, counter| {
            let kills = hierarchy.kills(pod);
            counter.baseline = kills.as_ref().map_or(0, |kills| kills.total);
            counter.reported = 0;
            kills.is_ok()
        });
    }

    /// Removes a container, and with the last one its pod.
    pub(super) fn remove(&mut self, id: &ContainerId, cgroup: &str) {
        let Some(pod) = pod_of(cgroup) else { return };
        if let Some(counter) = self.0.get_mut(pod) {
            counter.containers.remove(id);
            if counter.containers.is_empty() {
                self.0.remove(pod);
            }
        }
    }
}

/// The pod's cgroup above a container's, as the kubelet names it: `pod` and the pod's UID in a
/// folder of its own, or at the end of a slice's name. A cgroup that is not a pod's, such as
/// `system.slice`, also counts the kills of other services. crun makes `container` below the scope.
fn pod_of(cgroup: &str) -> Option<&str> {
    let (above, _) = cgroup.rsplit_once('/')?;
    let pod = if above.ends_with(".scope") { above.rsplit_once('/')?.0 } else { above };
    let name = pod.rsplit('/').next()?;
    let is_pod = match name.strip_suffix(".slice") {
        // kind has `kubelet-kubepods-podUID.slice`.
        Some(slice) => slice.contains("kubepods") && slice.contains("-pod"),
        None => {
            name.len() > "pod".len() && name.starts_with("pod") && pod.split('/').any(|it| it == "kubepods")
        }
    };
    is_pod.then_some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn pod_found_above_container_of_each_driver() {
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7_1.slice";
        for (cgroup, expect) in [
            (format!("{slice}/cri-containerd-c1.scope"), Some(slice)),
            (format!("{slice}/cri-containerd-c1.scope/container"), Some(slice)),
            ("/kubepods/besteffort/pod7/c1".to_owned(), Some("/kubepods/besteffort/pod7")),
            ("/system.slice/cri-containerd-c1.scope".to_owned(), None),
            ("/kubepods.slice/c1".to_owned(), None),
            ("/default/c1".to_owned(), None),
            ("/kubepods/pod/c1".to_owned(), None),
            ("/podcasts/c1".to_owned(), None),
            ("/machine.slice/machine-pod7.slice/libpod-c1.scope".to_owned(), None),
            ("/c1".to_owned(), None),
        ] {
            assert_eq!(pod_of(&cgroup), expect, "{cgroup}");
        }
    }

    #[test]
    fn kill_without_counter_found_in_pod_once() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cgroup.controllers"), "memory\n").unwrap();
        let pod = mount.path().join("kubepods/pod7");
        std::fs::create_dir_all(&pod).unwrap();
        let count = |kills: u64| {
            std::fs::write(pod.join("memory.events"), format!("oom_kill {kills}\n")).unwrap();
        };
        count(5);
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        let (one, two) = ("/kubepods/pod7/c1", "/kubepods/pod7/c2");
        let mut pods = PodCounters::default();
        pods.add(&hierarchy, &id("c1"), one, None);
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), None);
        // One of the five is the container's, and not reported yet.
        pods.add(&hierarchy, &id("c1"), one, Some(1));
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), Some(1));
        pods.reported(one, 1);
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), Some(0));
        assert_eq!(pods.unreported(&hierarchy, &id("c2"), two), None, "it may have ended before");
        pods.add(&hierarchy, &id("c2"), two, None);
        assert_eq!(pods.siblings(&id("c1"), one), [id("c2")]);
        count(8);
        assert_eq!(pods.unreported(&hierarchy, &id("c2"), two), Some(3));
        pods.reported(two, 3);
        pods.remove(&id("c2"), two);
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), Some(0));
        count(9);
        pods.rebase(&hierarchy);
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), Some(0));
        pods.remove(&id("c1"), one);
        assert_eq!(pods.unreported(&hierarchy, &id("c1"), one), None);
    }
}
