//! Registers an epoll instance with tokio. Apart because that registration is the crate's one
//! unsafe call.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an epoll instance with the runtime: it is readable when a descriptor in it is.
#[expect(unsafe_code, reason = "tokio requires that the descriptor stays the same; there is no safe form")]
pub fn register(epoll: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the Arc keeps the descriptor open while the AsyncFd lives, and always returns the
    // same one.
    let registered = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
