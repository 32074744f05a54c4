//! Why a router did not start, or ended unexpectedly.

use crate::admin::ControlError;
use coroner_journal::JournalError;
use coroner_policy::HostError;

/// Why a router did not start, or ended unexpectedly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The policy host cannot start.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The metrics listener cannot be opened.
    #[error("cannot listen on {address} (metrics.address): {source}")]
    Metrics {
        /// Configured address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A task ended before the shutdown.
    #[error("task {part} exited unexpectedly{}", .reason.as_ref().map_or_else(String::new, |it| format!(": {it}")))]
    Ended {
        /// Name of the task.
        part: String,
        /// Its panic; `None`: it returned.
        reason: Option<String>,
    },
}
