//! gRPC to containerd's socket: the connection, and one unary call.
//!
//! The messages are written out by hand where they are used: a generated client would bring
//! `protoc` into every build.

use std::path::PathBuf;

use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Bytes of one answer: an OCI spec with many mounts has some ten KiB.
const MAX_ANSWER: usize = 4 << 20;

/// A channel that connects on first use.
pub fn connect(address: PathBuf) -> Channel {
    // The URI is never resolved: the connector below goes to the socket.
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let address = address.clone();
            async move { UnixStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        },
    ))
}

pub(crate) fn within<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let header = namespace
        .parse()
        .map_err(|_| Status::invalid_argument("the namespace is not a valid header value"))?;
    request.metadata_mut().insert("containerd-namespace", header);
    Ok(request)
}

pub(crate) async fn unary<Q, A>(
    channel: Channel,
    path: &'static str,
    request: Request<Q>,
) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    client.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

/// Every namespace of containerd.
pub(crate) async fn namespaces(channel: Channel) -> Result<Vec<String>, Status> {
    let request = Request::new(ListNamespaces {});
    let answer: Namespaces =
        unary(channel, "/containerd.services.namespaces.v1.Namespaces/List", request).await?;
    Ok(answer.namespaces.into_iter().map(|it| it.name).collect())
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ListNamespaces {}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(string, tag = "1")]
    name: String,
}
