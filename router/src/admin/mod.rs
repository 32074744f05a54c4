//! The admin server: status, policies, guests, the tap, metrics and probes, as HTTP and JSON.
//!
//! The control socket has every route. The metrics address has `/metrics`, `/live` and `/ready`,
//! which change nothing. docs/reference/admin-api.md has the routes and what each returns.

mod document;
mod metrics;
mod probes;
mod problem;
mod routes;
mod server;
mod stream;

use std::io;
use std::path::Path;

pub use self::document::{
    GuestList, JournalStatus, SinkStatus, SourceStatus, Status, StatusReader, UnmanagedPod,
    UnwatchedContainer,
};
pub use self::metrics::registry;
pub use self::probes::Probes;
pub use self::problem::Refusal;
pub use self::routes::AdminService;
pub use self::server::{Listener, serve};
pub use self::stream::Missed;

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the control socket {path} (control.socket): {source}")]
pub struct ControlError {
    /// The socket's path.
    pub path: String,
    /// The cause.
    pub source: io::Error,
}

/// Opens the control socket; only root and the router's own user can connect. To be called on the
/// runtime.
pub fn control_socket(path: &Path) -> Result<Listener, ControlError> {
    let failed = |source| ControlError { path: path.display().to_string(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir(folder).map_err(failed)?;
    }
    coroner_transport::bind(path).map(Listener::Unix).map_err(failed)
}

/// Uses a socket that the service manager opened. It outlives this process: a client that connects
/// before the router serves waits in the socket's queue.
pub fn inherited_socket(listener: std::os::unix::net::UnixListener) -> Result<Listener, ControlError> {
    let path = listener.local_addr().ok().and_then(|it| Some(it.as_pathname()?.display().to_string()));
    let failed = |source| ControlError { path: path.unwrap_or_default(), source };
    coroner_transport::inherited(listener).map(Listener::Unix).map_err(failed)
}
