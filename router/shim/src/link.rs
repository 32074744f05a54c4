//! One connection of containerd's, and its own to the inner shim: frames pass as they are, and some replies wait for a ruling.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use coroner_proto::shim::KillRequest;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::task::{Id, JoinSet};

use crate::frames::{self, Frame, Frames};
use crate::news::News;
use crate::processes::{Known, Processes, Ruling};
use crate::task::{self, Method, Process, Request};

/// Calls without an answer that are remembered of one connection: containerd has one Wait for each process. Those above pass unruled.
const CALLS: usize = 4096;

/// What all connections of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) processes: Arc<Processes>,
    pub(crate) news: Arc<News>,
    /// Random for each proxy.
    pub(crate) proxy_id: String,
    /// The calls of Kill.
    pub(crate) kills: AtomicU64,
}

/// A call that waits for its reply.
type Call = (Method, Process);

/// A reply that waits for its ruling.
struct Held {
    call: Call,
    frame: Vec<u8>,
}

/// A connection with what is known of its calls, by their stream ids.
struct Link<'a> {
    shared: &'a Shared,
    calls: Mutex<HashMap<u32, Call>>,
}

/// Carries a connection until the inner shim ends it.
pub(crate) async fn carry(mut client: UnixStream, inner: &Path, shared: &Shared) -> io::Result<()> {
    let mut inner = UnixStream::connect(inner).await?;
    let link = Link { shared, calls: Mutex::default() };
    let (client_read, client_write) = client.split();
    let (inner_read, mut inner_write) = inner.split();
    let requests = async {
        // Whatever ends the requests, replies to those before still come.
        link.requests(client_read, &mut inner_write).await.ok();
        inner_write.shutdown().await.ok();
        std::future::pending().await
    };
    tokio::select! {
        ended = link.replies(inner_read, client_write) => ended,
        never = requests => never,
    }
}

impl Link<'_> {
    async fn requests(&self, read: ReadHalf<'_>, write: &mut WriteHalf<'_>) -> io::Result<()> {
        let mut frames = Frames::new(read);
        while let Some(frame) = frames.next().await? {
            match frame {
                Frame::Whole(frame) => {
                    self.look(&frame);
                    write.write_all(&frame).await?;
                }
                Frame::Large(header) => frames.pass(&header, write).await?,
            }
        }
        Ok(())
    }

    /// Remembers what a request asks for, before the shim can answer it.
    fn look(&self, frame: &[u8]) {
        let (stream, frames::REQUEST) = frames::header(frame) else { return };
        match task::request(frames::body(frame)) {
            Some(Request::Call(method, process)) => {
                let mut calls = self.calls();
                if calls.len() < CALLS {
                    calls.insert(stream, (method, process));
                }
            }
            Some(Request::Kill { process, signal, all }) => self.shared.kill(process, signal, all),
            None => {}
        }
    }

    async fn replies(&self, read: ReadHalf<'_>, mut write: WriteHalf<'_>) -> io::Result<()> {
        let mut frames = Frames::new(read);
        let mut rulings = JoinSet::new();
        let mut held: HashMap<Id, Held> = HashMap::new();
        let mut open = true;
        while open || !rulings.is_empty() {
            tokio::select! {
                next = frames.next(), if open => match next {
                    Ok(Some(Frame::Whole(frame))) => self.reply(frame, &mut write, &mut rulings, &mut held).await?,
                    Ok(Some(Frame::Large(header))) => {
                        self.calls().remove(&frames::header(&header).0);
                        frames.pass(&header, &mut write).await?;
                    }
                    // What is held is still told.
                    Ok(None) | Err(_) => open = false,
                },
                Some(ruled) = rulings.join_next_with_id() => {
                    let (id, ruling) = match ruled {
                        Ok((id, ruling)) => (id, Some(ruling)),
                        Err(failed) => (failed.id(), None),
                    };
                    if let Some(held) = held.remove(&id) {
                        self.release(held, ruling.as_ref(), &mut write).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Passes a reply on, or holds it.
    async fn reply(
        &self,
        frame: Vec<u8>,
        write: &mut WriteHalf<'_>,
        rulings: &mut JoinSet<Arc<Ruling>>,
        held: &mut HashMap<Id, Held>,
    ) -> io::Result<()> {
        let (stream, kind) = frames::header(&frame);
        let call = (kind == frames::RESPONSE).then(|| self.calls().remove(&stream)).flatten();
        let payload = call.as_ref().and_then(|_| task::payload(frames::body(&frame)));
        let (Some(call), Some(payload)) = (call, payload) else { return write.write_all(&frame).await };
        let processes = &self.shared.processes;
        match call.0 {
            Method::Create => processes.made(&call.1, task::pid(payload)),
            Method::Exec => processes.made(&call.1, None),
            Method::Start => processes.started(&call.1, task::pid(payload)),
            Method::Wait | Method::State | Method::Delete => {
                if let Some(end) = task::end(call.0, payload) {
                    match processes.ruling(&call.1, end) {
                        Known::Told(ruling) => {
                            return self.release(Held { call, frame }, Some(&ruling), write).await;
                        }
                        Known::Pending(ruling) => {
                            held.insert(rulings.spawn(ruling).id(), Held { call, frame })
                        }
                    };
                    return Ok(());
                }
            }
        }
        write.write_all(&frame).await?;
        if call.0 == Method::Delete {
            processes.deleted(&call.1);
        }
        Ok(())
    }

    /// Passes a held reply on with what was ruled; if that came to nothing, as it is.
    async fn release(
        &self,
        Held { call: (method, process), frame }: Held,
        ruling: Option<&Arc<Ruling>>,
        write: &mut WriteHalf<'_>,
    ) -> io::Result<()> {
        let body = frames::body(&frame);
        let ruled = ruling.and_then(|ruling| task::with_status(method, body, ruling.status).ok());
        let frame = ruled.map_or_else(|| frame.clone(), |body| frames::with_body(&frame, &body));
        write.write_all(&frame).await?;
        if let Some(ruling) = ruling {
            self.shared.processes.told(&process, ruling);
        }
        if method == Method::Delete {
            self.shared.processes.deleted(&process);
        }
        Ok(())
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<u32, Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn kill(&self, process: Process, signal: u32, all: bool) {
        let boot = clock_gettime(ClockId::Boottime);
        let boot_ns = u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000 + boot.tv_nsec.cast_unsigned();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.news.kill(KillRequest {
            seq: self.kills.fetch_add(1, Ordering::Relaxed) + 1,
            proxy_id: self.proxy_id.clone(),
            container_id: process.container,
            exec_id: process.exec,
            signal,
            all,
            at_ns: u64::try_from(at.as_nanos()).unwrap_or(0),
            boot_ns,
            ..Default::default()
        });
    }
}
