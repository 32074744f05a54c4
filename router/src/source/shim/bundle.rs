//! Who a container is, from its bundle's `config.json` (the OCI runtime specification), as CRI plugins fill it in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use crate::signal::Owner;

/// Bytes of a `config.json`: those of pods with many mounts have some ten KiB.
const MOST: u64 = 4 << 20;

/// What a bundle says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) sandbox_id: Option<String>,
    pub(super) owner: Option<Owner>,
    /// Bytes.
    pub(super) memory_limit: Option<u64>,
    pub(super) cgroups_path: Option<String>,
    /// The file of the host that is the container's termination message.
    pub(super) termination_log: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
    linux: Linux,
    mounts: Vec<Mount>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: Option<String>,
    resources: Resources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    memory: Memory,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mount {
    destination: String,
    source: String,
}

impl Bundle {
    /// Reads a bundle; one that cannot be read says nothing.
    pub(super) fn read(folder: &Path) -> Self {
        let mut text = Vec::new();
        let read =
            File::open(folder.join("config.json")).and_then(|file| file.take(MOST).read_to_end(&mut text));
        if let Err(error) = read {
            tracing::debug!(bundle = %folder.display(), %error, "bundle not read");
            return Self::default();
        }
        serde_json::from_slice(&text).map(Self::of).unwrap_or_default()
    }

    fn of(spec: Spec) -> Self {
        // containerd's names, and CRI-O's.
        let annotation = |names: [&str; 2]| {
            names.iter().find_map(|name| spec.annotations.get(*name)).filter(|it| !it.is_empty()).cloned()
        };
        let sandbox = annotation(["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"])
            .is_some_and(|kind| kind == "sandbox");
        let owner = Owner {
            pod: annotation(["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
            namespace: annotation(["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
            pod_uid: annotation(["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
            container: annotation(["io.kubernetes.cri.container-name", "io.kubernetes.container.name"])
                .filter(|_| !sandbox),
            init_container: None,
            image: annotation(["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]),
        };
        // A kubelet's: /var/lib/kubelet/pods/UID/containers/NAME/HASH, wherever the pod wants it.
        let is_log = |mount: &&Mount| {
            let mut parts = mount.source.rsplit('/').skip(2);
            mount.destination == "/dev/termination-log"
                || parts.next() == Some("containers") && parts.nth(1) == Some("pods")
        };
        Self {
            sandbox_id: annotation(["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"]),
            memory_limit: spec
                .linux
                .resources
                .memory
                .limit
                .and_then(|limit| u64::try_from(limit).ok())
                .filter(|limit| *limit > 0),
            termination_log: spec.mounts.iter().find(is_log).map(|mount| mount.source.clone()),
            cgroups_path: spec.linux.cgroups_path.filter(|path| !path.is_empty()),
            owner: (owner != Owner::default()).then_some(owner),
        }
    }

    /// Whether a cgroup, by its path, is the one this bundle asks for, and not that of a machine around it.
    pub(super) fn has(&self, cgroup: &str) -> bool {
        let Some(asked) = &self.cgroups_path else { return false };
        let mut parts = asked.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            // systemd's: SLICE:PREFIX:NAME.
            (Some(_), Some(prefix), Some(name)) => cgroup.ends_with(&format!("/{prefix}-{name}.scope")),
            _ => cgroup.ends_with(&format!("/{}", asked.trim_matches('/'))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_read_from_annotations_and_mounts() {
        let spec = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1","io.kubernetes.cri.sandbox-name":"p",
            "io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.container-name":"c","io.kubernetes.cri.image-name":"i:1",
            "io.kubernetes.cri.container-type":"container"},
            "mounts":[{"destination":"/etc/hosts","source":"/var/lib/kubelet/pods/u/etc-hosts"},
                      {"destination":"/log","source":"/var/lib/kubelet/pods/u/containers/c/0a1b"}],
            "linux":{"cgroupsPath":"/kubepods/pod1/c1","resources":{"memory":{"limit":1048576}}}}"#;
        let bundle = Bundle::of(serde_json::from_str(spec).unwrap());
        assert_eq!(bundle.sandbox_id.as_deref(), Some("s1"));
        assert_eq!(bundle.memory_limit, Some(1 << 20));
        assert_eq!(bundle.termination_log.as_deref(), Some("/var/lib/kubelet/pods/u/containers/c/0a1b"));
        let owner = bundle.owner.clone().unwrap();
        assert_eq!((owner.pod.as_deref(), owner.container.as_deref()), (Some("p"), Some("c")));
        assert_eq!((owner.image.as_deref(), owner.pod_uid), (Some("i:1"), None));
        assert!(bundle.has("/kubepods/pod1/c1") && bundle.has("/machine/kubepods/pod1/c1"));
        assert!(!bundle.has("/kata_c1") && !bundle.has("/kubepods/pod1"));
    }

    #[test]
    fn a_scope_of_systemd_is_found() {
        let bundle = Bundle {
            cgroups_path: Some("kubepods-podx.slice:cri-containerd:c1".to_owned()),
            ..Bundle::default()
        };
        assert!(bundle.has("/kubepods.slice/kubepods-podx.slice/cri-containerd-c1.scope"));
        assert!(!bundle.has("/kubepods.slice/kubepods-podx.slice"));
        assert!(!Bundle::default().has("/c1"));
    }
}
