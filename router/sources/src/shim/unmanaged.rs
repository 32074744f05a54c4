//! Pods that started without the router: their shim publishes at containerd as long as it lives,
//! and they are watched in mode `beside`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use coroner_core::signal::{Owner, Signal};
use coroner_shim_config::unmanaged::{UnmanagedStart, folder, remove};
use coroner_transport::Address;
use serde::{Deserialize, Serialize};

use super::bundle::Bundle;
use crate::settings::{Source, SourceKind};

/// The attribute of a signal about such a pod: why its shim started without the router.
pub const UNMANAGED: &str = "unmanaged-because";

/// A pod in a status; without CRI, a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnmanagedPod {
    /// Its sandbox's id, or the container's.
    pub id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Its name; `None`: not known.
    pub pod: Option<String>,
    /// Its namespace in Kubernetes.
    pub namespace: Option<String>,
    /// When it started, in unix milliseconds.
    pub since_ms: u64,
    /// Why it started without the router.
    pub because: String,
}

/// The records of the wrapper, in the folders beside the sources' sockets.
#[derive(Clone, Debug)]
pub struct UnmanagedPods(Arc<[PathBuf]>);

impl UnmanagedPods {
    /// Of the sources of type `shim`.
    pub fn of(sources: &[Source]) -> Self {
        let folders: BTreeSet<PathBuf> = sources
            .iter()
            .filter(|source| source.kind == SourceKind::Shim)
            .filter_map(|source| match &source.address {
                Address::Unix(path) => Some(folder(path)),
                _ => None,
            })
            .collect();
        Self(folders.into_iter().collect())
    }

    /// All that live, by id.
    pub fn list(&self) -> Vec<UnmanagedPod> {
        let mut pods = Vec::new();
        for folder in self.0.iter() {
            for (start, written) in UnmanagedStart::list(folder) {
                match pod(&start, written) {
                    Some(pod) => pods.push(pod),
                    // Its pod's sandbox has a record of its own, or is managed.
                    None => remove(folder, &start.namespace, &start.id),
                }
            }
        }
        pods.sort_by(|one, other| one.id.cmp(&other.id));
        pods
    }

    /// Adds the reason to a signal about a container of such a pod, where containerd's namespace is
    /// known.
    pub fn mark(&self, signal: &mut Signal) {
        let target = &signal.target;
        let Some(namespace) = target.containerd_namespace.as_deref() else { return };
        let id = target.sandbox_id.as_deref().unwrap_or_else(|| target.container_id.as_str());
        let mut found = self.0.iter().filter_map(|folder| UnmanagedStart::read(folder, namespace, id));
        let Some((start, written)) = found.next() else { return };
        if target.sandbox_id.is_some() || pod(&start, written).is_some() {
            signal.attributes.push((UNMANAGED.to_owned(), start.reason));
            signal.attributes.sort();
        }
    }
}

/// `None` for a later container of a pod, which shares the shim of the pod's sandbox.
fn pod(start: &UnmanagedStart, written: SystemTime) -> Option<UnmanagedPod> {
    let bundle = Bundle::read(&start.bundle);
    if bundle.sandbox_id.is_some_and(|sandbox| sandbox != start.id) {
        return None;
    }
    let Owner { pod, namespace, .. } = bundle.owner.unwrap_or_default();
    let since = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(UnmanagedPod {
        id: start.id.clone(),
        containerd_namespace: start.namespace.clone(),
        pod,
        namespace,
        since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        because: start.reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use coroner_core::mode::Mode;
    use coroner_core::signal::{ContainerId, Event, Moment, Other, Target};

    use super::*;

    fn source(kind: SourceKind, path: &Path) -> Source {
        Source {
            name: "s".to_owned(),
            kind,
            mode: Mode::Wrapped,
            guest: None,
            address: Address::Unix(path.to_owned()),
            machine: None,
        }
    }

    fn started(scratch: &Path, id: &str, config: &str) {
        let bundle = scratch.join(format!("bundle-{id}"));
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        let reason = "no answer within 2s".to_owned();
        let start = UnmanagedStart { id: id.to_owned(), namespace: "k8s.io".to_owned(), bundle, reason };
        start.write(&folder(&scratch.join("shim.sock"))).unwrap();
    }

    fn marked(
        pods: &UnmanagedPods,
        namespace: &str,
        sandbox: Option<&str>,
        container: &str,
    ) -> Vec<(String, String)> {
        let at = Moment { boot_ns: None, wall_ms: None, received_ms: 0 };
        let target = Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: Some(namespace.to_owned()),
            sandbox_id: sandbox.map(str::to_owned),
            container_id: ContainerId::try_from(container.to_owned()).unwrap(),
            exec_id: None,
            owner: None,
        };
        let event = Event::Other(Other { kind: "test".to_owned(), json: "{}".to_owned() });
        let mut signal = Signal { id: "i".to_owned(), at, target, event, attributes: Vec::new() };
        pods.mark(&mut signal);
        signal.attributes
    }

    #[test]
    fn pod_is_counted_once_by_its_sandbox() {
        let scratch = tempfile::tempdir().unwrap();
        let annotations = r#"{"annotations":{"io.kubernetes.cri.container-type":"TYPE","io.kubernetes.cri.sandbox-id":"ID",
            "io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"shop"}}"#;
        let of = |kind: &str, sandbox: &str| annotations.replace("TYPE", kind).replace("ID", sandbox);
        started(scratch.path(), "s1", &of("sandbox", "s1"));
        started(scratch.path(), "c1", &of("container", "s1"));
        // The pod's shim is managed, and the router was away when this container started.
        started(scratch.path(), "c2", &of("container", "s2"));
        started(scratch.path(), "alone", "{}");
        let sources = [
            source(SourceKind::Shim, &scratch.path().join("shim.sock")),
            source(SourceKind::Shim, &scratch.path().join("proxy.sock")),
            source(SourceKind::Agent, Path::new("/other/agent.sock")),
        ];
        let pods = UnmanagedPods::of(&sources);
        let expect = vec![(UNMANAGED.to_owned(), "no answer within 2s".to_owned())];
        for _ in ["before the list", "after it"] {
            assert_eq!(marked(&pods, "k8s.io", Some("s1"), "c9"), expect);
            assert_eq!(marked(&pods, "k8s.io", None, "alone"), expect);
            assert_eq!(marked(&pods, "moby", None, "alone"), []);
            assert_eq!(marked(&pods, "k8s.io", Some("s2"), "c2"), []);
            assert_eq!(marked(&pods, "k8s.io", None, "c2"), [], "a container of another pod");
            let listed = pods.list();
            assert_eq!(listed.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["alone", "s1"]);
            let pod = &listed[1];
            assert_eq!((pod.pod.as_deref(), pod.namespace.as_deref()), (Some("web"), Some("shop")));
            assert_eq!((pod.containerd_namespace.as_str(), listed[0].pod.as_deref()), ("k8s.io", None));
            assert!(pod.since_ms > 0);
        }
        let left = fs::read_dir(scratch.path().join("unmanaged")).unwrap().count();
        assert_eq!(left, 2, "one record for each pod");
        assert_eq!(UnmanagedPods::of(&[]).list(), []);
    }
}
