//! The epoll that all descriptors are in, and a wait for it. Apart because tokio's registration is the one unsafe call here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an epoll with the runtime: it is readable when anything in it is.
#[expect(
    unsafe_code,
    reason = "tokio asks for the promise that the descriptor stays what it is; there is no safe form"
)]
pub fn register(epoll: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the Arc keeps the descriptor open for as long as the AsyncFd lives, and always gives the same one.
    let registered = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
