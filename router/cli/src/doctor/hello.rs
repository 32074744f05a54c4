//! Whether a router listens where wrapped shims publish, and in which mode: the wrapper's own
//! request.

use std::path::Path;
use std::time::Duration;

use coroner_proto::shim::HelloRequest;
use coroner_proto::shim_ttrpc::ShimClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

/// More than the wrapper waits: a slow router is not an absent one.
const PATIENCE: Duration = Duration::from_secs(3);

/// The mode of the source behind the socket, or why there is no answer.
pub(super) async fn hello(path: &Path) -> Result<String, String> {
    let request = async {
        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        let request =
            HelloRequest { shim_version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloRequest::default() };
        let client = ShimClient::new(Client::new(Socket::new(stream)));
        let answer = client.hello(ttrpc::context::with_duration(PATIENCE), &request).await;
        answer.map(|answer| answer.mode).map_err(|error| error.to_string())
    };
    timeout(PATIENCE, request).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}
