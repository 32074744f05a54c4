//! A guest's end of a link, frame by frame and byte by byte: it may send anything at any time.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coroner_proto::agent::{
    EvidenceResponse, HelloResponse, NextSignalsRequest, NextSignalsResponse, SnapshotResponse,
};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use ttrpc::proto::{Request, Response};

/// A guest that runs its script on every link.
pub(crate) struct Bad {
    links: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Bad {
    /// Takes links on a socket, and runs `script` on each until it ends, which ends the link.
    pub(crate) fn serve<S, D>(socket: &Path, script: S) -> Self
    where
        S: Fn(Link) -> D + Send + 'static,
        D: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = UnixListener::bind(socket).unwrap();
        let (links, mut serving) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let count = Arc::clone(&links);
        serving.spawn(async move {
            let mut scripts = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let doing = script(Link(stream));
                // The router ends links in the middle of an exchange: most scripts wait for that.
                scripts.spawn(async { drop(doing.await) });
            }
        });
        Self { links, _serving: serving }
    }

    /// How often the router dialled.
    pub(crate) fn links(&self) -> usize {
        self.links.load(Ordering::SeqCst)
    }
}

/// One link to the router.
pub(crate) struct Link(pub(crate) UnixStream);

/// A request of the router.
pub(crate) struct Call {
    pub(crate) stream: u32,
    pub(crate) method: String,
    payload: Vec<u8>,
}

impl Call {
    /// Whether it only acknowledges signals: the answer to that is ignored.
    pub(crate) fn is_ack(&self) -> bool {
        let request = NextSignalsRequest::parse_from_bytes(&self.payload);
        self.method == "NextSignals" && request.is_ok_and(|it| it.after_seq == u64::MAX)
    }
}

impl Link {
    /// The next request.
    pub(crate) async fn call(&mut self) -> io::Result<Call> {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).await?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut body = vec![0; number(0) as usize];
        self.0.read_exact(&mut body).await?;
        let request = Request::parse_from_bytes(&body)?;
        Ok(Call { stream: number(4), method: request.method, payload: request.payload })
    }

    /// Answers a request.
    pub(crate) async fn answer(&mut self, call: &Call, message: &impl Message) -> io::Result<()> {
        self.payload(call, message.write_to_bytes()?).await
    }

    /// Answers a request with these bytes.
    pub(crate) async fn payload(&mut self, call: &Call, payload: Vec<u8>) -> io::Result<()> {
        let response = Response { payload, ..Response::default() };
        self.0.write_all(&frame(call.stream, 2, &response.write_to_bytes()?)).await
    }

    /// Sends hello as an agent does, and answers everything else about itself with nothing, until a
    /// request for signals.
    pub(crate) async fn up(&mut self, stream: &str) -> io::Result<Call> {
        loop {
            let call = self.call().await?;
            match call.method.as_str() {
                "Hello" => self.answer(&call, &hello(stream)).await?,
                "Snapshot" => self.answer(&call, &SnapshotResponse::default()).await?,
                "GetEvidence" => self.answer(&call, &EvidenceResponse::default()).await?,
                _ => return Ok(call),
            }
        }
    }

    /// The next request for signals or for a snapshot. What only acknowledges is answered, and
    /// there is no evidence.
    pub(crate) async fn next(&mut self) -> io::Result<Call> {
        loop {
            let call = self.call().await?;
            match call.method.as_str() {
                "GetEvidence" => self.answer(&call, &EvidenceResponse::default()).await?,
                _ if call.is_ack() => self.answer(&call, &NextSignalsResponse::default()).await?,
                _ => return Ok(call),
            }
        }
    }

    /// Answers no further request for signals.
    pub(crate) async fn idle(&mut self) -> io::Result<()> {
        loop {
            self.next().await?;
        }
    }

    /// Sends nothing more, and reads what it is sent until the router ends the link.
    pub(crate) async fn silent(&mut self) -> io::Result<()> {
        tokio::io::copy(&mut self.0, &mut tokio::io::sink()).await.map(drop)
    }
}

/// The first answer of an agent.
pub(crate) fn hello(stream: &str) -> HelloResponse {
    let capabilities = vec!["kill-count".to_owned(), "exit-status".to_owned()];
    HelloResponse { stream_id: stream.to_owned(), capabilities, ..HelloResponse::default() }
}

/// A ttrpc frame.
pub(crate) fn frame(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).expect("a frame's length").to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}
