//! Where rulings go, and how long each sink is waited for.

use std::path::PathBuf;
use std::time::Duration;

use super::url::Url;

/// Where actions and records go.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Unique.
    pub name: String,
    /// What it is.
    pub kind: SinkKind,
    /// What waits for it; nothing of it is heeded where the modes lead.
    pub queue: Queue,
}

/// The kinds of sink.
#[derive(Clone, Debug)]
pub enum SinkKind {
    /// containerd's event exchange.
    Containerd,
    /// A file in the container's bundle, for CRI-O.
    OomFile,
    /// One document a line, in a file.
    Jsonl(Jsonl),
    /// CloudEvents over HTTP.
    Webhook(Box<Webhook>),
    /// One document a line, to whoever listens on this unix socket.
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

    /// Whether the modes lead there, and no route: it is where CRI learns of a container's end.
    pub fn is_lifecycle(&self) -> bool {
        matches!(self, Self::Containerd | Self::OomFile)
    }
}

/// What waits for a sink, and for how long.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Documents it holds.
    pub documents: usize,
    /// Which give way when it is full.
    pub overflow: Overflow,
    /// Documents in one delivery at most.
    pub batch: usize,
    /// A document that was not taken for so long is given up.
    pub deadline: Duration,
    /// Where documents go that were refused or given up.
    pub dead_letter: Option<PathBuf>,
}

impl Default for Queue {
    /// A disk that stalls for seconds on a busy node is ridden out.
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

/// Which documents give way in a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The one that comes.
    DropNewest,
    /// The one that waited longest.
    DropOldest,
}

/// A file of lines.
#[derive(Clone, Debug)]
pub struct Jsonl {
    /// `None` is standard output.
    pub path: Option<PathBuf>,
    /// A file of so many bytes is renamed; `None`: never.
    pub rotate_size: Option<u64>,
    /// Renamed files that are kept.
    pub rotate_keep: u64,
    /// Whether each batch is synced to the disk.
    pub fsync: bool,
}

impl Jsonl {
    /// A file that is never renamed nor synced.
    pub fn at(path: Option<PathBuf>) -> Self {
        Self { path, rotate_size: None, rotate_keep: 5, fsync: false }
    }
}

/// A receiver of CloudEvents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where it listens.
    pub url: Url,
    /// A request holds several documents.
    pub batched: bool,
    /// For one request.
    pub timeout: Duration,
    /// What its certificate is checked against; `None`: this machine's roots.
    pub ca_file: Option<PathBuf>,
    /// The certificate and the key we show.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Holds the bearer token.
    pub token_file: Option<PathBuf>,
    /// Holds what requests are signed with.
    pub hmac_secret_file: Option<PathBuf>,
}
