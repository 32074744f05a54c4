//! One connection of containerd, and the matching one to the inner shim: frames pass unchanged, and
//! some replies wait for a ruling.

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
use crate::outbox::Outbox;
use crate::processes::{ExitRuling, ProcessTable, RulingState};
use crate::task::{self, Method, ProcessId, Request};

/// Open calls remembered for one connection: containerd has one Wait for each process. Replies to
/// calls above this limit pass without a ruling.
const CALLS: usize = 4096;

/// State that all connections of a proxy share.
#[derive(Debug)]
pub(crate) struct ProxyState {
    pub(crate) processes: Arc<ProcessTable>,
    pub(crate) outbox: Arc<Outbox>,
    /// The proxy's random id.
    pub(crate) proxy_id: String,
    /// Number of Kill calls.
    pub(crate) kills: AtomicU64,
}

/// A call that waits for its reply.
type OpenCall = (Method, ProcessId);

/// A reply that waits for its ruling.
struct HeldReply {
    call: OpenCall,
    frame: Vec<u8>,
}

/// A connection with its open calls, by stream id.
struct ProxiedConnection<'a> {
    shared: &'a ProxyState,
    calls: Mutex<HashMap<u32, OpenCall>>,
}

/// Forwards a connection until the inner shim ends it.
pub(crate) async fn carry(mut client: UnixStream, inner: &Path, shared: &ProxyState) -> io::Result<()> {
    let mut inner = UnixStream::connect(inner).await?;
    let link = ProxiedConnection { shared, calls: Mutex::default() };
    let (client_read, client_write) = client.split();
    let (inner_read, mut inner_write) = inner.split();
    let requests = async {
        // When the requests end, the replies to earlier ones still follow.
        link.requests(client_read, &mut inner_write).await.ok();
        inner_write.shutdown().await.ok();
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = link.replies(inner_read, client_write) => ended,
        never = requests => never,
    };
    // Their replies cannot be received on another connection.
    for (method, process) in std::mem::take(&mut *link.calls()).into_values() {
        if method == Method::Start {
            shared.processes.started(&process, None);
        }
    }
    ended
}

impl ProxiedConnection<'_> {
    async fn requests(&self, read: ReadHalf<'_>, write: &mut WriteHalf<'_>) -> io::Result<()> {
        let mut frames = Frames::new(read);
        while let Some(frame) = frames.next().await? {
            match frame {
                Frame::Whole(frame) => {
                    self.track_request(&frame);
                    write.write_all(&frame).await?;
                }
                Frame::Large(header) => frames.pass(&header, write).await?,
            }
        }
        Ok(())
    }

    /// Remembers a request before the shim can answer it.
    fn track_request(&self, frame: &[u8]) {
        let (stream, frames::REQUEST) = frames::header(frame) else { return };
        match task::request(frames::body(frame)) {
            Some(Request::Call(method, process)) => {
                let mut calls = self.calls();
                if calls.len() < CALLS {
                    if method == Method::Start {
                        self.shared.processes.starting(&process);
                    }
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
        let mut held: HashMap<Id, HeldReply> = HashMap::new();
        let mut open = true;
        while open || !rulings.is_empty() {
            tokio::select! {
                next = frames.next(), if open => match next {
                    Ok(Some(Frame::Whole(frame))) => self.reply(frame, &mut write, &mut rulings, &mut held).await?,
                    Ok(Some(Frame::Large(header))) => {
                        let call = self.calls().remove(&frames::header(&header).0);
                        self.unread(call.as_ref());
                        frames.pass(&header, &mut write).await?;
                    }
                    // Held replies are still sent.
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

    /// Forwards a reply, or holds it.
    async fn reply(
        &self,
        frame: Vec<u8>,
        write: &mut WriteHalf<'_>,
        rulings: &mut JoinSet<Arc<ExitRuling>>,
        held: &mut HashMap<Id, HeldReply>,
    ) -> io::Result<()> {
        let (stream, kind) = frames::header(&frame);
        let call = (kind == frames::RESPONSE).then(|| self.calls().remove(&stream)).flatten();
        let Some(call) = call else { return write.write_all(&frame).await };
        if call.0 == Method::Stats {
            return write.write_all(&self.agreeing(&call.1, frame)).await;
        }
        let Some(payload) = task::payload(frames::body(&frame)) else {
            self.unread(Some(&call));
            return write.write_all(&frame).await;
        };
        let processes = &self.shared.processes;
        match call.0 {
            Method::Create => processes.made(&call.1, task::pid(payload)),
            Method::Exec => processes.made(&call.1, None),
            Method::Start => processes.started(&call.1, task::pid(payload)),
            Method::Stats => {}
            Method::Wait | Method::State | Method::Delete => {
                if let Some(end) = task::end(call.0, payload) {
                    match processes.ruling(&call.1, end) {
                        RulingState::Final(ruling) => {
                            return self.release(HeldReply { call, frame }, Some(&ruling), write).await;
                        }
                        RulingState::Pending(ruling) => {
                            held.insert(rulings.spawn(ruling).id(), HeldReply { call, frame })
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

    /// A reply to Stats that agrees with the ruling, if the container has ended.
    fn agreeing(&self, container: &ProcessId, frame: Vec<u8>) -> Vec<u8> {
        let oom = self.shared.processes.oom(container);
        let body = oom.and_then(|oom| task::with_ruled_oom(frames::body(&frame), oom));
        match body {
            Some(body) => frames::with_body(&frame, &body),
            None => frame,
        }
    }

    /// Handles a reply without a usable result, such as an error.
    fn unread(&self, call: Option<&OpenCall>) {
        if let Some((Method::Start, process)) = call {
            self.shared.processes.started(process, None);
        }
    }

    /// Sends a held reply with its ruled status, or unchanged if there is no ruling.
    async fn release(
        &self,
        HeldReply { call: (method, process), frame }: HeldReply,
        ruling: Option<&Arc<ExitRuling>>,
        write: &mut WriteHalf<'_>,
    ) -> io::Result<()> {
        let body = frames::body(&frame);
        let ruled = ruling.and_then(|ruling| task::with_status(method, body, ruling.status).ok());
        let frame = ruled.map_or_else(|| frame.clone(), |body| frames::with_body(&frame, &body));
        write.write_all(&frame).await?;
        if let Some(ruling) = ruling {
            self.shared.processes.reply_sent(&process, ruling);
        }
        if method == Method::Delete {
            self.shared.processes.deleted(&process);
        }
        Ok(())
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<u32, OpenCall>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProxyState {
    fn kill(&self, process: ProcessId, signal: u32, all: bool) {
        let boot = clock_gettime(ClockId::Boottime);
        let boot_ns = u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000 + boot.tv_nsec.cast_unsigned();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.outbox.kill(KillRequest {
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
