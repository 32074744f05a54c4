//! Opens links: every one of them is guarded, whichever side opens it and whatever it runs over.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::address::Address;
use crate::bucket::Bucket;
use crate::guard::{Guard, Refused};

/// Between an accept that failed and the next.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Frames a second that are read of a stranger, and how many at once. Each costs the reader some microseconds: without a bound one guest
/// that sends as fast as it can would take a processor. Every frame answers a call of ours, which are a few a second.
const FRAMES: (u32, u32) = (250, 1000);
/// Bytes of a monitor's answer to CONNECT: "OK", and a port that the monitor chose.
const MAX_GREETING: usize = 64;

/// Dials.
pub async fn connect(address: &Address) -> io::Result<Socket> {
    Ok(match address {
        Address::Unix(path) => Socket::new(Guard::new(UnixStream::connect(path).await?)),
        Address::Vsock { cid, port } => Socket::new(Guard::new(vsock(*cid, *port).await?)),
        Address::Hvsock { path, port } => Socket::new(Guard::new(hybrid(path, *port).await?)),
    })
}

/// Dials a guest, of whom nothing is trusted: frames are paced, and what was refused is told.
pub async fn connect_guest(address: &Address) -> io::Result<(Socket, Refused)> {
    fn guarded<S>(stream: S) -> (Socket, Refused)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let guard = Guard::new(stream).paced(Bucket::new(FRAMES.0, FRAMES.1));
        let refused = guard.refused();
        (Socket::new(guard), refused)
    }
    Ok(match address {
        Address::Unix(path) => guarded(UnixStream::connect(path).await?),
        Address::Vsock { cid, port } => guarded(vsock(*cid, *port).await?),
        Address::Hvsock { path, port } => guarded(hybrid(path, *port).await?),
    })
}

async fn vsock(cid: u32, port: u32) -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(cid, port)).await
}

/// Dials a guest's port through its monitor: `CONNECT PORT`, answered by a line that begins with `OK ` once the guest took it. A
/// guest that is not up, or has nobody on that port, shows as the end of the stream or as a reset.
async fn hybrid(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut greeting = Vec::with_capacity(MAX_GREETING);
    // One byte at a time: what follows the line is the guest's.
    while greeting.last() != Some(&b'\n') {
        if greeting.len() == MAX_GREETING {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the monitor's answer is no line"));
        }
        greeting.push(stream.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::ConnectionReset,
                format!("nobody in the guest answers on port {port}"),
            ),
            _ => error,
        })?);
    }
    if greeting.starts_with(b"OK ") {
        return Ok(stream);
    }
    let said = String::from_utf8_lossy(&greeting).trim_end().escape_debug().to_string();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the monitor answered `{said}`")))
}

/// Links as they come, each with a word of its end.
pub type Incoming = BoxStream<'static, io::Result<(Socket, oneshot::Receiver<()>)>>;

/// Listens, for whoever must tell one link from another. A unix socket is made as by [`listen`].
pub fn incoming(address: &Address) -> io::Result<Incoming> {
    fn noticed<S>(accepted: io::Result<S>) -> io::Result<(Socket, oneshot::Receiver<()>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        accepted.map(|stream| {
            let mut guard = Guard::new(stream);
            let ended = guard.ended();
            (Socket::new(guard), ended)
        })
    }
    Ok(match address {
        Address::Unix(path) => futures::stream::unfold(bind(path)?, async |listener| {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((noticed(paced(accepted).await), listener))
        })
        .boxed(),
        Address::Vsock { cid, port } => {
            let listener = VsockListener::bind(VsockAddr::new(*cid, *port))?;
            futures::stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((noticed(paced(accepted).await), listener))
            })
            .boxed()
        }
        Address::Hvsock { .. } => return Err(only_dialled()),
    })
}

/// Listens. A unix socket is made with mode 0600; one that nobody answers on any more is replaced.
pub fn listen(address: &Address) -> io::Result<Listener> {
    Ok(Listener::new(incoming(address)?.map(|accepted| accepted.map(|(socket, _)| socket))))
}

fn only_dialled() -> io::Error {
    let message = "hvsock is for who dials; in a guest listen on vsock://-1:PORT";
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// Out of descriptors, accept fails at once and again at once: whoever opens links until then would have the server spin.
async fn paced<S>(accepted: io::Result<S>) -> io::Result<S> {
    if accepted.is_err() {
        tokio::time::sleep(AFTER_FAILURE).await;
    }
    accepted
}

/// Listens on a unix socket that is made with mode 0600; one that nobody answers on any more is replaced. Its links have no guard:
/// [`listen`] is for strangers, this is for commands of whoever may open it.
pub fn private(path: &Path) -> io::Result<Listener> {
    Ok(unguarded(bind(path)?))
}

/// A socket that others have opened, and who may connect to it is theirs to say. Its links have no guard, as those of [`private`].
pub fn adopted(listener: StdListener) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    Ok(unguarded(UnixListener::from_std(listener)?))
}

fn unguarded(listener: UnixListener) -> Listener {
    Listener::new(futures::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((paced(accepted).await, listener))
    }))
}

/// A unix socket made with mode 0600; one that nobody answers on any more is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{} is there and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let message = format!("{} is in use: another process answers on it", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The mask is the process's: it is put back at once, and what another thread makes meanwhile is only too private.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = StdListener::bind(path);
    rustix::process::umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
