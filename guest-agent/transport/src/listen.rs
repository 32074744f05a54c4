//! Listens for links. Those of strangers are guarded, whatever they run over.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_vsock::{VsockAddr, VsockListener};
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::address::Address;
use crate::guard::Guard;

/// Delay between an accept that failed and the next. Without descriptors accept fails at once:
/// without the delay the server would spin while a peer opens links.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Accepted links, each with a receiver that resolves when the link ends.
pub type Incoming = BoxStream<'static, io::Result<(Socket, oneshot::Receiver<()>)>>;

fn guarded<S>(accepted: io::Result<S>) -> io::Result<(Socket, oneshot::Receiver<()>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    accepted.map(|stream| {
        let mut guard = Guard::new(stream);
        let ended = guard.ended();
        (Socket::new(guard), ended)
    })
}

fn guarded_unix(listener: UnixListener) -> Incoming {
    futures::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((guarded(delay_if_failed(accepted).await), listener))
    })
    .boxed()
}

/// Listens, for servers that must distinguish links. A unix socket is created as by [`listen`].
pub fn incoming(address: &Address) -> io::Result<Incoming> {
    Ok(match address {
        Address::Unix(path) => guarded_unix(bind(path)?),
        Address::Vsock { cid, port } => {
            let listener = VsockListener::bind(VsockAddr::new(*cid, *port))?;
            futures::stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((guarded(delay_if_failed(accepted).await), listener))
            })
            .boxed()
        }
        Address::Hvsock { .. } => return Err(hvsock_not_listenable()),
    })
}

/// Listens. A unix socket is created with mode 0600; a stale one (nothing listens) is replaced.
///
/// ```no_run
/// # async fn example(service: std::collections::HashMap<String, ttrpc::asynchronous::Service>)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let listener = coroner_transport::listen(&"unix:///run/example.sock".parse()?)?;
/// let mut server =
///     ttrpc::asynchronous::Server::new().add_listener(listener).register_service(service);
/// server.start().await?;
/// # Ok(())
/// # }
/// ```
pub fn listen(address: &Address) -> io::Result<Listener> {
    incoming(address).map(as_listener)
}

/// Accepts on a unix socket that the service manager opened (sd_listen_fds(3)). Its links are
/// guarded, as those of [`listen`].
pub fn listen_inherited(listener: StdListener) -> io::Result<Listener> {
    inherited(listener).map(guarded_unix).map(as_listener)
}

/// A unix socket that the service manager opened, for the runtime.
pub fn inherited(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn as_listener(incoming: Incoming) -> Listener {
    Listener::new(incoming.map(|accepted| accepted.map(|(socket, _)| socket)))
}

fn hvsock_not_listenable() -> io::Error {
    let message = "hvsock addresses can only be dialled; in a guest listen on vsock://-1:PORT";
    io::Error::new(io::ErrorKind::Unsupported, message)
}

async fn delay_if_failed<S>(accepted: io::Result<S>) -> io::Result<S> {
    if accepted.is_err() {
        tokio::time::sleep(ACCEPT_RETRY).await;
    }
    accepted
}

/// Listens on a unix socket with mode 0600; a stale one is replaced. Its links are not guarded:
/// file permissions restrict the peers, where [`listen`] is for untrusted ones.
pub fn private(path: &Path) -> io::Result<Listener> {
    Ok(unguarded(bind(path)?))
}

fn unguarded(listener: UnixListener) -> Listener {
    Listener::new(futures::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((delay_if_failed(accepted).await, listener))
    }))
}

/// Binds a unix socket with mode 0600; a stale one (nothing listens) is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let message = format!("{} is in use: another process listens on it", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The mask is process-wide: it is restored at once, and a file that another thread creates
    // meanwhile is only too private.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = StdListener::bind(path);
    rustix::process::umask(before);
    inherited(bound?)
}
