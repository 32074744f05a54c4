//! The settings of sinks: kind, queue and timeouts of each.

use std::path::PathBuf;
use std::time::Duration;

use crate::url::Url;

/// One sink of the configuration.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// The sink's name, unique.
    pub name: String,
    /// Its kind, with the settings of that kind.
    pub kind: SinkKind,
    /// Its queue. Lifecycle sinks do not use it: they have a lane of their own.
    pub queue: Queue,
}

/// The kinds of sink.
#[derive(Clone, Debug)]
pub enum SinkKind {
    /// containerd's event exchange.
    Containerd,
    /// A file in the container's bundle, for CRI-O.
    OomFile,
    /// A file with one document a line.
    Jsonl(Jsonl),
    /// CloudEvents over HTTP.
    Webhook(Box<Webhook>),
    /// One document a line, to the listener of this unix socket.
    Unix(PathBuf),
}

impl SinkKind {
    /// As the configuration names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::OomFile => "oom-file",
            Self::Jsonl(_) => "jsonl",
            Self::Webhook(_) => "webhook",
            Self::Unix(_) => "unix",
        }
    }

    /// Whether it is a lifecycle sink, where CRI receives a container's end. Modes send events
    /// there, routes do not.
    pub fn is_lifecycle(&self) -> bool {
        matches!(self, Self::Containerd | Self::OomFile)
    }
}

/// The queue of a sink.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Documents in the queue at most.
    pub documents: usize,
    /// Which document is dropped when the queue is full.
    pub overflow: Overflow,
    /// Documents in one delivery at most.
    pub batch: usize,
    /// Timeout from a document's creation until the sink has accepted it.
    pub deadline: Duration,
    /// The dead-letter file for dropped documents.
    pub dead_letter: Option<PathBuf>,
}

impl Default for Queue {
    /// Enough for a disk that stalls for seconds on a busy node.
    fn default() -> Self {
        Self {
            documents: 8192,
            overflow: Overflow::DropNewest,
            batch: 256,
            deadline: Duration::from_secs(5 * 60),
            dead_letter: None,
        }
    }
}

/// Which document is dropped when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The new document.
    DropNewest,
    /// The oldest document.
    DropOldest,
}

/// The settings of a `jsonl` sink.
#[derive(Clone, Debug)]
pub struct Jsonl {
    /// `None` is standard output.
    pub path: Option<PathBuf>,
    /// Size in bytes at which the file is rotated; `None`: never.
    pub rotate_size: Option<u64>,
    /// Number of rotated files that are kept.
    pub rotate_keep: u64,
    /// Whether each batch is synced to the disk.
    pub fsync: bool,
}

impl Jsonl {
    /// A file that is neither rotated nor synced.
    pub fn at(path: Option<PathBuf>) -> Self {
        Self { path, rotate_size: None, rotate_keep: 5, fsync: false }
    }
}

/// A receiver of CloudEvents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where it listens.
    pub url: Url,
    /// A request may contain several documents.
    pub batched: bool,
    /// Timeout of one request.
    pub timeout: Duration,
    /// The root certificates that the receiver is checked against; `None`: this host's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
    /// File with the secret that signs requests.
    pub hmac_secret_file: Option<PathBuf>,
}
