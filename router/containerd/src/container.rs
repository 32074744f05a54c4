//! Pod metadata of one container, from containerd's Containers API: its labels, image and OCI spec.

use std::collections::HashMap;

use coroner_core::signal::Owner;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::grpc::{namespaces, unary, within};
use crate::oci::OciSpec;

/// What containerd knows of a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its containerd namespace.
    pub containerd_namespace: Option<String>,
    /// Its pod's sandbox.
    pub sandbox_id: Option<String>,
    /// Its owner in Kubernetes.
    pub owner: Option<Owner>,
    /// Bytes, from the OCI spec.
    pub memory_limit: Option<u64>,
}

/// Looks up `k8s.io` first, then every other namespace.
pub(crate) async fn look_up(channel: Channel, id: &str) -> Result<Option<Identity>, Status> {
    if let Some(identity) = get(channel.clone(), "k8s.io", id).await? {
        return Ok(Some(identity));
    }
    for namespace in namespaces(channel.clone()).await?.iter().filter(|it| *it != "k8s.io") {
        if let Some(identity) = get(channel.clone(), namespace, id).await? {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

async fn get(channel: Channel, namespace: &str, id: &str) -> Result<Option<Identity>, Status> {
    let request = within(GetContainer { id: id.to_owned() }, namespace)?;
    let answer: Result<GotContainer, Status> =
        unary(channel, "/containerd.services.containers.v1.Containers/Get", request).await;
    match answer {
        Ok(answer) => Ok(answer.container.map(|container| identity(namespace, container))),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
        Err(status) => Err(status),
    }
}

fn identity(namespace: &str, container: ContainerMessage) -> Identity {
    let label = |name: &str| container.labels.get(name).filter(|value| !value.is_empty()).cloned();
    // A client wrote the spec: one that does not parse leaves its facts unknown.
    let spec: OciSpec =
        container.spec.as_ref().and_then(|any| serde_json::from_slice(&any.value).ok()).unwrap_or_default();
    let owner = Owner {
        pod: label("io.kubernetes.pod.name"),
        namespace: label("io.kubernetes.pod.namespace"),
        pod_uid: label("io.kubernetes.pod.uid"),
        container: label("io.kubernetes.container.name"),
        init_container: None,
        image: Some(container.image.clone()).filter(|image| !image.is_empty()),
    };
    Identity {
        containerd_namespace: Some(namespace.to_owned()),
        sandbox_id: spec.annotations.get("io.kubernetes.cri.sandbox-id").cloned(),
        owner: (owner != Owner::default()).then_some(owner),
        memory_limit: spec.memory_limit(),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainer {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMessage {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(map = "string, string", tag = "2")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "3")]
    image: String,
    #[prost(message, optional, tag = "5")]
    spec: Option<AnyMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(labels: &[(&str, &str)], image: &str, spec: &[u8]) -> ContainerMessage {
        ContainerMessage {
            id: "c1".to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            image: image.to_owned(),
            spec: Some(AnyMessage { type_url: String::new(), value: spec.to_vec() }),
        }
    }

    #[test]
    fn pod_read_from_labels_and_spec() {
        let spec = br#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"},
                        "linux":{"resources":{"memory":{"limit":1048576}}},"process":{"args":["x"]}}"#;
        let labels = [("io.kubernetes.pod.name", "p"), ("io.kubernetes.pod.namespace", "n")];
        let got = identity("k8s.io", container(&labels, "img:1", spec));
        assert_eq!(got.sandbox_id.as_deref(), Some("s1"));
        assert_eq!(got.memory_limit, Some(1 << 20));
        let owner = got.owner.unwrap();
        assert_eq!((owner.pod.as_deref(), owner.namespace.as_deref()), (Some("p"), Some("n")));
        assert_eq!((owner.container, owner.image.as_deref()), (None, Some("img:1")));
    }

    #[test]
    fn missing_metadata_stays_unknown() {
        let got = identity("moby", container(&[("io.kubernetes.pod.name", "")], "", b"no json"));
        assert_eq!(got, Identity { containerd_namespace: Some("moby".to_owned()), ..Identity::default() });
    }
}
