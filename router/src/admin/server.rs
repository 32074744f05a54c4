//! Accepts connections and serves them within limits. At the limit the oldest idle connection is
//! closed, so that clients that only connect do not lock others out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt as _;

use crate::config::MetricsAddress;

/// Connections at once. Any local user may connect to a loopback address: without a limit they
/// could have the router hold as many as it has descriptors.
const CONNECTIONS: usize = 64;
/// A request's head must be complete by then, and a connection without a request is closed.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes of a request's head, and of a response that is being sent.
const BUFFER: usize = 64 << 10;
/// Requests under way may take this long to end once the router stops.
const LAST: Duration = Duration::from_secs(1);
/// Pause after an accept that failed: without descriptors it fails at once and again at once.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// On a loopback address.
    Http(TcpListener),
    /// On a unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Opens the metrics address; to be called on the runtime.
    pub fn open(address: &MetricsAddress) -> io::Result<Self> {
        match address {
            MetricsAddress::Http(address) => {
                let listener = StdListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Http(TcpListener::from_std(listener)?))
            }
            MetricsAddress::Unix(path) => Ok(Self::Unix(coroner_transport::bind(path)?)),
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn ByteStream>> {
        match self {
            Self::Http(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// A connection over either kind of socket.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Serves until the router stops; then requests under way may end.
pub async fn serve(listener: Listener, routes: Router, mut stop: watch::Receiver<bool>) {
    let stopping = stop.clone();
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.tasks.join_next() => connections.forget_ended(),
            accepted = listener.accept() => match accepted {
                Ok(stream) if connections.make_room() => {
                    connections.add(stream, routes.clone(), stopping.clone());
                }
                // Every connection has a request under way: this one is closed.
                Ok(stream) => drop(stream),
                Err(_) => tokio::time::sleep(AFTER_FAILURE).await,
            },
        }
    }
    drop((listener, routes));
    drop(tokio::time::timeout(LAST, async { while connections.tasks.join_next().await.is_some() {} }).await);
}

/// Resolves when the router stops. The guard of what is watched must not be held on.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: the router is gone.
    drop(stop.wait_for(|it| *it).await);
}

#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// In the order they were accepted.
    open: VecDeque<Open>,
}

struct Open {
    task: AbortHandle,
    /// Requests under way: 0 or 1.
    requests: Arc<AtomicUsize>,
}

impl Connections {
    /// Closes the oldest idle connection if there is no room. False: none is idle.
    fn make_room(&mut self) -> bool {
        self.forget_ended();
        if self.open.len() < CONNECTIONS {
            return true;
        }
        let idle = self.open.iter().position(|it| it.requests.load(Ordering::Relaxed) == 0);
        match idle.and_then(|at| self.open.remove(at)) {
            Some(idle) => {
                idle.task.abort();
                true
            }
            None => false,
        }
    }

    fn forget_ended(&mut self) {
        self.open.retain(|it| !it.task.is_finished());
    }

    fn add(&mut self, stream: Box<dyn ByteStream>, routes: Router, stop: watch::Receiver<bool>) {
        let requests = Arc::<AtomicUsize>::default();
        let task = self.tasks.spawn(connection(stream, routes, Arc::clone(&requests), stop));
        self.open.push_back(Open { task, requests });
    }
}

async fn connection(
    stream: Box<dyn ByteStream>,
    routes: Router,
    requests: Arc<AtomicUsize>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(|request| respond(request, routes.clone(), UnderWay::new(&requests)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // The client went away, or sent what is not a request: the router has nothing to do.
        _ = connection.as_mut() => return,
        () = stopped(&mut stop) => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

/// A request counts until its response's body is written or dropped.
async fn respond(
    request: Request<Incoming>,
    routes: Router,
    under_way: UnderWay,
) -> Result<Response<Body>, Infallible> {
    let response = routes.oneshot(request.map(Body::new)).await?;
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &under_way;
            frame
        }))
    }))
}

/// Counts a request for as long as it lives.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(requests: &Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(requests))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
