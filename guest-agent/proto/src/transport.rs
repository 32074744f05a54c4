//! Opens links: every one of them is guarded, whichever side opens it and whatever it runs over.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::address::Address;
use crate::guard::Guard;

/// Between an accept that failed and the next.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Dials.
pub async fn connect(address: &Address) -> io::Result<Socket> {
    match address {
        Address::Unix(path) => Ok(Socket::new(Guard::new(UnixStream::connect(path).await?))),
        Address::Vsock { cid, port } => {
            Ok(Socket::new(Guard::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await?)))
        }
    }
}

/// Listens. A unix socket is made with mode 0600; one that nobody answers on any more is replaced.
pub fn listen(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Unix(path) => {
            let listener = bind(path)?;
            Ok(Listener::new(futures::stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(stream, _)| Guard::new(stream));
                Some((paced(accepted).await, listener))
            })))
        }
        Address::Vsock { cid, port } => {
            let listener = VsockListener::bind(VsockAddr::new(*cid, *port))?;
            Ok(Listener::new(futures::stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(stream, _)| Guard::new(stream));
                Some((paced(accepted).await, listener))
            })))
        }
    }
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
    let listener = bind(path)?;
    Ok(Listener::new(futures::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((paced(accepted).await, listener))
    })))
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
