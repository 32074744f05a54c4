//! The identity of a container, from its bundle's `config.json` (the OCI runtime specification)
//! with the annotations of CRI plugins.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use coroner_containerd::{OciSpec, SpecMount};
use coroner_core::signal::Owner;

/// Largest `config.json` in bytes: a pod with many mounts has some ten KiB.
const MOST: u64 = 4 << 20;

/// The facts of a bundle.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) sandbox_id: Option<String>,
    pub(super) owner: Option<Owner>,
    /// The memory limit in bytes.
    pub(super) memory_limit: Option<u64>,
    pub(super) cgroups_path: Option<String>,
    /// The host's file of the container's termination message.
    pub(super) termination_log: Option<String>,
}

impl Bundle {
    /// Reads a bundle; one that cannot be read has no facts.
    pub(super) fn read(folder: &Path) -> Self {
        let mut text = Vec::new();
        let read =
            File::open(folder.join("config.json")).and_then(|file| file.take(MOST).read_to_end(&mut text));
        if let Err(error) = read {
            tracing::debug!(bundle = %folder.display(), %error, "bundle not read");
            return Self::default();
        }
        serde_json::from_slice(&text).map(|spec| Self::of(&spec)).unwrap_or_default()
    }

    fn of(spec: &OciSpec) -> Self {
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
        // The kubelet's file is /var/lib/kubelet/pods/UID/containers/NAME/HASH; the pod chooses
        // where it is mounted.
        let is_log = |mount: &&SpecMount| {
            let mut parts = mount.source.rsplit('/').skip(2);
            mount.destination == "/dev/termination-log"
                || parts.next() == Some("containers") && parts.nth(1) == Some("pods")
        };
        Self {
            sandbox_id: annotation(["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"]),
            memory_limit: spec.memory_limit(),
            termination_log: spec.mounts.iter().find(is_log).map(|mount| mount.source.clone()),
            cgroups_path: spec.cgroups_path().map(str::to_owned),
            owner: (owner != Owner::default()).then_some(owner),
        }
    }

    /// The container's cgroup, given that of its init: the one that this bundle names, or the
    /// folder `container` below it, where crun sets the limit. `None`: the init is in the cgroup of
    /// a virtual machine around the container.
    pub(super) fn cgroup<'a>(&self, of_init: &'a str) -> Option<&'a str> {
        let path = self.cgroups_path.as_deref()?;
        // A runtime without the systemd driver takes systemd's form for a path.
        let literal = format!("/{}", path.trim_matches('/'));
        let mut parts = path.splitn(3, ':');
        let scope = match (parts.next(), parts.next(), parts.next()) {
            // systemd's form: SLICE:PREFIX:NAME.
            (Some(_), Some(prefix), Some(name)) => Some(format!("/{prefix}-{name}.scope")),
            _ => None,
        };
        let named = [Some(literal), scope].into_iter().flatten();
        named.filter_map(|name| below(of_init, &name)).next()
    }
}

/// The part of a path that ends with `name`, where a whole component follows it or none.
fn below<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let end = path.match_indices(name).map(|(at, _)| at + name.len()).find(|end| {
        let rest = &path[*end..];
        rest.is_empty() || rest.starts_with('/')
    })?;
    Some(if &path[end..] == "/container" { path } else { &path[..end] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_read_from_annotations_and_mounts() {
        let spec = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1","io.kubernetes.cri.sandbox-name":"p",
            "io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.container-name":"c","io.kubernetes.cri.image-name":"i:1",
            "io.kubernetes.cri.container-type":"container"},
            "mounts":[{"destination":"/etc/hosts","source":"/var/lib/kubelet/pods/u/etc-hosts"},
                      {"destination":"/log","source":"/var/lib/kubelet/pods/u/containers/c/0a1b"}],
            "linux":{"cgroupsPath":"/kubepods/pod1/c1","resources":{"memory":{"limit":1048576}}}}"#;
        let bundle = Bundle::of(&serde_json::from_str(spec).unwrap());
        assert_eq!(bundle.sandbox_id.as_deref(), Some("s1"));
        assert_eq!(bundle.memory_limit, Some(1 << 20));
        assert_eq!(bundle.termination_log.as_deref(), Some("/var/lib/kubelet/pods/u/containers/c/0a1b"));
        let owner = bundle.owner.clone().unwrap();
        assert_eq!((owner.pod.as_deref(), owner.container.as_deref()), (Some("p"), Some("c")));
        assert_eq!((owner.image.as_deref(), owner.pod_uid), (Some("i:1"), None));
        for own in ["/kubepods/pod1/c1", "/machine/kubepods/pod1/c1"] {
            assert_eq!(bundle.cgroup(own), Some(own));
            assert_eq!(bundle.cgroup(&format!("{own}/init.scope")), Some(own));
        }
        for other in ["/kata_c1", "/kubepods/pod1", "/kubepods/pod1/c12"] {
            assert_eq!(bundle.cgroup(other), None);
        }
    }

    #[test]
    fn systemd_scope_matches_its_cgroup() {
        let bundle = Bundle {
            cgroups_path: Some("kubepods-podx.slice:cri-containerd:c1".to_owned()),
            ..Bundle::default()
        };
        let scope = "/kubepods.slice/kubepods-podx.slice/cri-containerd-c1.scope";
        let crun = format!("{scope}/container");
        // Without the systemd driver, below containerd's own service.
        let literal = "/system.slice/kubepods-podx.slice:cri-containerd:c1";
        for own in [scope, &crun, literal] {
            assert_eq!(bundle.cgroup(own), Some(own));
        }
        assert_eq!(bundle.cgroup("/kubepods.slice/kubepods-podx.slice"), None);
        assert_eq!(Bundle::default().cgroup("/c1"), None);
    }
}
