//! A web server that receives CloudEvents, and gives the answers it is set to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::fixture::PATIENCE;

/// Why the lock here can be taken.
const UNPOISONED: &str = "nothing panics under this lock";

/// One request.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// The certificate its sender showed.
    pub(crate) client: Option<CertificateDer<'static>>,
}

impl Post {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |it| it.to_str().expect("a header of text"))
    }
}

/// How a request is answered: a status, and `Retry-After`.
pub(crate) type Answer = (u16, Option<&'static str>);

#[derive(Debug)]
struct Shared {
    /// Used up before 200 is answered.
    answers: Mutex<VecDeque<Answer>>,
    took: mpsc::Sender<Post>,
    /// While it is false, nothing is answered.
    answering: watch::Receiver<bool>,
}

/// Ended when it is dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    answering: watch::Sender<bool>,
    posts: mpsc::Receiver<Post>,
    server: JoinSet<()>,
}

impl Receiver {
    /// Over TLS, at a port of its own.
    pub(crate) async fn secure(config: ServerConfig, answers: &[Answer]) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), Some(config), answers).await
    }

    /// In clear, at a port of its own.
    pub(crate) async fn clear(answers: &[Answer]) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), None, answers).await
    }

    pub(crate) async fn at(address: SocketAddr, tls: Option<ServerConfig>, answers: &[Answer]) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound");
        let (took, posts) = mpsc::channel(1 << 16);
        let (answering, is_answering) = watch::channel(true);
        let answers = Mutex::new(answers.iter().copied().collect());
        let shared = Arc::new(Shared { answers, took, answering: is_answering });
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let mut server = JoinSet::new();
        server.spawn(accept(listener, tls, shared));
        Self { address, answering, posts, server }
    }

    /// The next request.
    pub(crate) async fn post(&mut self) -> Post {
        let post =
            tokio::time::timeout(PATIENCE, self.posts.recv()).await.expect("a request within a minute");
        post.expect("the server runs")
    }

    /// The data of the next `count` structured events.
    pub(crate) async fn documents(&mut self, count: usize) -> Vec<Value> {
        let mut documents = Vec::new();
        while documents.len() < count {
            documents.push(self.post().await.json()["data"].clone());
        }
        documents
    }

    /// Whether all requests have been read.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.posts.try_recv().is_err()
    }

    /// Closes its port and every connection.
    pub(crate) async fn end(mut self) {
        self.server.shutdown().await;
    }

    /// Answers nothing from now on, or what is due and all that comes.
    pub(crate) fn answer(&self, answering: bool) {
        self.answering.send_replace(answering);
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Some(tls) = tls else { return serve(stream, None, shared).await };
            // A client that does not trust this server, or is not trusted, gets no further.
            let Ok(stream) = tls.accept(stream).await else { return };
            let shown = stream.get_ref().1.peer_certificates();
            let client = shown.and_then(|it| it.first()).map(|it| it.clone().into_owned());
            serve(stream, client, shared).await;
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: Option<CertificateDer<'static>>,
    shared: Arc<Shared>,
) {
    let service = service_fn(|request| answer(request, client.clone(), Arc::clone(&shared)));
    // A router that goes away ends its connection as it likes.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(
    request: Request<Incoming>,
    client: Option<CertificateDer<'static>>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/events"));
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    shared.took.try_send(Post { headers: head.headers, body, client }).expect("the test reads every request");
    drop(shared.answering.clone().wait_for(|answering| *answering).await);
    let next = shared.answers.lock().expect(UNPOISONED).pop_front();
    let (status, after) = next.unwrap_or((200, None));
    let mut response = Response::builder().status(status);
    if let Some(after) = after {
        response = response.header("retry-after", after);
    }
    Ok(response.body(Full::from("so it is")).expect("an answer of ours"))
}
