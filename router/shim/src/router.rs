//! The client of the router: each call has a timeout.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::shim::{HelloRequest, HelloResponse};
use coroner_proto::shim_ttrpc::ShimClient;
use coroner_transport::Guard;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// Delay between two attempts to connect while the socket's queue of connections is full.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouterError {
    /// The socket has no listener.
    #[error("the router does not answer: {0}")]
    Absent(#[source] io::Error),
    /// No answer within the timeout.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// The link broke, or the answer cannot be decoded.
    #[error("{0}")]
    Broken(#[source] ttrpc::Error),
    /// The answer is an error.
    #[error("{:?}: {}", .0.code(), .0.message)]
    Refused(ttrpc::Status),
}

/// The router behind a socket. One link is kept, and replaced when it is broken.
#[derive(Debug)]
pub(crate) struct RouterClient {
    socket: PathBuf,
    link: Mutex<CachedLink>,
}

/// The link and its number: a caller with a broken link must not drop a newer one.
#[derive(Default)]
struct CachedLink {
    client: Option<ShimClient>,
    count: u64,
}

impl std::fmt::Debug for CachedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedLink")
            .field("open", &self.client.is_some())
            .field("count", &self.count)
            .finish()
    }
}

impl RouterClient {
    /// A client that connects at the first call.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), link: Mutex::default() }
    }

    /// Queries the router's version and the mode of its source.
    pub(crate) async fn hello(&self, within: Duration) -> Result<HelloResponse, RouterError> {
        let shim_version = env!("CARGO_PKG_VERSION").to_owned();
        let request = HelloRequest { shim_version, ..Default::default() };
        let call = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.hello(context, &request).await }
        };
        self.call(within, call).await
    }

    /// Makes a call. Retries once if a kept link is broken: the router may have restarted.
    pub(crate) async fn call<T, C, F>(&self, within: Duration, make: C) -> Result<T, RouterError>
    where
        C: Fn(ShimClient, Context) -> F,
        F: Future<Output = ttrpc::Result<T>>,
    {
        let attempts = async {
            loop {
                let (client, count, kept) = self.client().await?;
                // Longer than the timeout here, which distinguishes a late answer from a broken
                // link.
                let nanos = i64::try_from(within.as_nanos().saturating_mul(2)).unwrap_or(i64::MAX);
                match make(client, ttrpc::context::with_timeout(nanos)).await {
                    Ok(answer) => return Ok(answer),
                    Err(ttrpc::Error::RpcStatus(status)) => return Err(RouterError::Refused(status)),
                    Err(error) => {
                        self.forget(count);
                        if !kept {
                            return Err(RouterError::Broken(error));
                        }
                    }
                }
            }
        };
        timeout(within, attempts).await.unwrap_or(Err(RouterError::Late(within)))
    }

    async fn client(&self) -> Result<(ShimClient, u64, bool), RouterError> {
        {
            let kept = self.kept();
            if let Some(client) = &kept.client {
                return Ok((client.clone(), kept.count, true));
            }
        }
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                // unix(7): the router's queue of connections is full: it runs, and is late.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_FULL).await,
                Err(error) => return Err(RouterError::Absent(error)),
            }
        };
        let client = ShimClient::new(Client::new(Socket::new(Guard::new(stream))));
        let mut kept = self.kept();
        kept.count += 1;
        kept.client = Some(client.clone());
        Ok((client, kept.count, false))
    }

    fn forget(&self, count: u64) {
        let mut kept = self.kept();
        if kept.count == count {
            kept.client = None;
        }
    }

    fn kept(&self) -> MutexGuard<'_, CachedLink> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
