//! Calls to the router, each with an end to how long it may take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::guard::Guard;
use coroner_proto::shim::{HelloRequest, HelloResponse};
use coroner_proto::shim_ttrpc::ShimClient;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// Between two attempts at a socket whose queue of connections is full.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Silence {
    /// Nobody listens.
    #[error("nobody answers: {0}")]
    Absent(#[source] io::Error),
    /// Not in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// The link broke, or what came over it is no answer.
    #[error("{0}")]
    Broken(#[source] ttrpc::Error),
    /// The answer is an error.
    #[error("{:?}: {}", .0.code(), .0.message)]
    Refused(ttrpc::Status),
}

/// The router behind a socket. One link is kept, and made anew when it is broken.
#[derive(Debug)]
pub(crate) struct Router {
    socket: PathBuf,
    link: Mutex<Kept>,
}

/// The link, and how many there have been: who finds his broken must not drop a newer one.
#[derive(Default)]
struct Kept {
    client: Option<ShimClient>,
    count: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("open", &self.client.is_some()).field("count", &self.count).finish()
    }
}

impl Router {
    /// Dials at the first call.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), link: Mutex::default() }
    }

    /// Whether a router listens, and what for.
    pub(crate) async fn hello(&self, within: Duration) -> Result<HelloResponse, Silence> {
        let shim_version = env!("CARGO_PKG_VERSION").to_owned();
        let request = HelloRequest { shim_version, ..Default::default() };
        let ask = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.hello(context, &request).await }
        };
        self.call(within, ask).await
    }

    /// Makes a call, once more if the link that was kept turns out to be broken: the router has restarted since.
    pub(crate) async fn call<T, C, F>(&self, within: Duration, make: C) -> Result<T, Silence>
    where
        C: Fn(ShimClient, Context) -> F,
        F: Future<Output = ttrpc::Result<T>>,
    {
        let attempts = async {
            loop {
                let (client, count, kept) = self.client().await?;
                // Later than the time-out here, which tells a late answer from a broken link.
                let nanos = i64::try_from(within.as_nanos().saturating_mul(2)).unwrap_or(i64::MAX);
                match make(client, ttrpc::context::with_timeout(nanos)).await {
                    Ok(answer) => return Ok(answer),
                    Err(ttrpc::Error::RpcStatus(status)) => return Err(Silence::Refused(status)),
                    Err(error) => {
                        self.forget(count);
                        if !kept {
                            return Err(Silence::Broken(error));
                        }
                    }
                }
            }
        };
        timeout(within, attempts).await.unwrap_or(Err(Silence::Late(within)))
    }

    async fn client(&self) -> Result<(ShimClient, u64, bool), Silence> {
        {
            let kept = self.kept();
            if let Some(client) = &kept.client {
                return Ok((client.clone(), kept.count, true));
            }
        }
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                // unix(7): the router's queue is full. It is there, and late.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_FULL).await,
                Err(error) => return Err(Silence::Absent(error)),
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

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
