//! Errors of an embedded router.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why an embedded router does not start, refuses a request, or failed.
///
/// After an error of a request the real status of the process is valid (fail open).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder lacks a setting.
    #[error("the router has no {setting}: call `RouterBuilder::{setting}`")]
    Missing {
        /// Name of the builder's method.
        setting: &'static str,
    },
    /// `start` was called outside of a tokio runtime.
    #[error("no tokio runtime: call `start` on one with I/O and time enabled")]
    NoRuntime,
    /// The router's directory cannot be created.
    #[error("cannot create the directory {}: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The configuration is refused.
    #[error("the configuration is refused: {}", .mistakes.join("; "))]
    Config {
        /// Every mistake, as `key: what is wrong`.
        mistakes: Vec<String>,
    },
    /// A part of the router cannot start: the policy host, the journal, or a socket.
    #[error("the router does not start: {source}")]
    Start {
        /// The error of that part.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The router refuses a request: the container's id is malformed, or the container was deleted.
    #[error("the request is refused: {reason}")]
    Refused {
        /// What is wrong with it.
        reason: String,
    },
    /// The router is stopping.
    #[error("the router is stopping")]
    Stopping,
    /// A task of the router exited unexpectedly, which stopped the router.
    #[error("the router failed: {source}")]
    Failed {
        /// The task, and its panic.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The deadline of the shutdown passed before everything was delivered. The journal has the
    /// rest: the next start with the same directory resumes it.
    #[error("{count} actions are not delivered: the next start resumes them")]
    Undelivered {
        /// How many actions.
        count: usize,
    },
}
