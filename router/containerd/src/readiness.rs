//! Readiness: whether CRI answers, and containerd's version.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::grpc::{connect, unary};

/// Timeout of the version request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Readiness of containerd's CRI; true also without a CRI plugin.
pub async fn cri_answers(channel: Channel) -> bool {
    let request = Request::new(CriStatus {});
    let answer: Result<CriStatus, Status> =
        unary(channel, "/runtime.v1.RuntimeService/Status", request).await;
    answer.map_or_else(|status| status.code() == Code::Unimplemented, |_| true)
}

/// The version of the containerd at `address`, such as "1.6.20", or the error.
pub async fn version(address: PathBuf) -> Result<String, String> {
    let path = "/containerd.services.version.v1.Version/Version";
    match timeout(TIMEOUT, unary(connect(address), path, Request::new(Empty {}))).await {
        Ok(Ok(VersionMessage { version })) => Ok(version),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// CRI's status; only the answer itself matters.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct CriStatus {}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct VersionMessage {
    #[prost(string, tag = "1")]
    version: String,
}
