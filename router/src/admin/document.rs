//! The documents of `/status` and `/guests`, as the server writes them and the command line reads
//! them. Keys are added, never changed: a reader skips keys that it does not know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::config::{Config, SourceKind};
use crate::counts::Counts;
use crate::guests::{GuestClient, GuestStatus};
use crate::node_watch::NodeWatch;
use coroner_core::mode::Mode;
use coroner_policy::PolicyClient;
use coroner_policy::report::Listing;
pub use coroner_sources::UnwatchedContainer;
pub use coroner_sources::shim::UnmanagedPod;

/// `GET /status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Version of the router.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Process id of the router.
    pub pid: u32,
    /// Milliseconds since the router started.
    pub uptime_ms: u64,
    /// Whether it runs with `--shadow-all`.
    pub shadow_all: bool,
    /// The policy directory.
    pub directory: Option<String>,
    /// The policies of the chain, and those that were refused.
    #[serde(flatten)]
    pub listing: Listing,
    /// Why kills may be missed on this node; `None`: nothing is known to be missing.
    #[serde(default)]
    pub degraded: Option<String>,
    /// Pods that started without the router and still run.
    #[serde(default)]
    pub unmanaged: Vec<UnmanagedPod>,
    /// Containers that the node's agent does not find; `None`: not known.
    #[serde(default)]
    pub unwatched: Option<Vec<UnwatchedContainer>>,
    /// In the order of the configuration.
    pub sources: Vec<SourceStatus>,
    /// By name.
    pub guests: Vec<GuestStatus>,
    /// In the order of the configuration.
    pub sinks: Vec<SinkStatus>,
    /// Readers of `/tap`.
    #[serde(default)]
    pub taps: usize,
    /// `None` without a journal.
    pub journal: Option<JournalStatus>,
}

/// A source in a status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SourceStatus {
    /// Its name.
    pub source: String,
    /// `agent`, `kata` or `shim`.
    pub r#type: String,
    /// Its mode.
    pub mode: Mode,
    /// Whether its link is up.
    pub connected: bool,
    /// Why its link is down.
    #[serde(default)]
    pub problem: Option<String>,
    /// Signals received.
    pub signals: u64,
    /// Signals that its agent dropped before they were read.
    pub lost: u64,
    /// Signals that could not be decoded.
    pub refused: u64,
}

/// A sink in a status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SinkStatus {
    /// Its name.
    pub sink: String,
    /// `containerd`, `jsonl`, ...
    pub r#type: String,
    /// Documents the sink acknowledged.
    pub delivered: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Documents that wait for the sink.
    #[serde(default)]
    pub queued: u64,
    /// When the oldest of them was made, in unix milliseconds.
    #[serde(default)]
    pub queued_since_ms: Option<u64>,
    /// Documents the sink did not get, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Why the last try failed; `None` while the sink can be reached.
    #[serde(default)]
    pub problem: Option<String>,
}

/// The journal in a status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JournalStatus {
    /// Where its files are.
    pub directory: String,
    /// Size of its current file.
    pub bytes: u64,
    /// Signals and rulings written.
    pub written: u64,
    /// Signals and rulings that could not be written in time.
    pub unjournaled: u64,
    /// Whether the last write failed.
    pub failing: bool,
}

/// `GET /guests`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestList {
    /// By name.
    pub guests: Vec<GuestStatus>,
}

/// Reads the status of a running router.
#[derive(Clone, Debug)]
pub struct StatusReader {
    fixed: Arc<FixedStatus>,
    counts: Arc<Counts>,
    watch: NodeWatch,
    policies: PolicyClient,
    guests: GuestClient,
}

/// The part of a status that does not change while a router runs.
#[derive(Debug)]
struct FixedStatus {
    node: String,
    started: Instant,
    shadow_all: bool,
    directory: Option<String>,
    journal: Option<String>,
    sources: Vec<(String, SourceKind, Mode)>,
    sinks: Vec<(String, &'static str)>,
}

impl StatusReader {
    /// The status of a router that starts now with this configuration.
    pub fn new(config: &Config, counts: Arc<Counts>, policies: PolicyClient, guests: GuestClient) -> Self {
        let fixed = FixedStatus {
            node: config.node.clone(),
            started: Instant::now(),
            shadow_all: config.policies.shadow_all,
            directory: config.policies.directory.as_ref().map(|path| path.display().to_string()),
            journal: config.journal.as_ref().map(|it| it.directory.display().to_string()),
            sources: config.sources.iter().map(|it| (it.name.clone(), it.kind, it.mode)).collect(),
            sinks: config.sinks.iter().map(|it| (it.name.clone(), it.kind.name())).collect(),
        };
        let watch = NodeWatch::new(config, &counts);
        Self { fixed: Arc::new(fixed), counts, watch, policies, guests }
    }

    /// The status now, with the number of open taps. `None`: the router is stopping.
    pub async fn read(&self, taps: usize) -> Option<Status> {
        let listing = self.policies.list().await?;
        let guests = self.guests.list().await.ok()?;
        let (degraded, unmanaged) = (self.watch.degraded(), self.watch.unmanaged());
        let unwatched = self.watch.unwatched();
        let status = self.fixed.status(&self.counts, listing, guests, taps);
        Some(Status { degraded, unmanaged, unwatched, ..status })
    }
}

impl FixedStatus {
    fn status(&self, counts: &Counts, listing: Listing, guests: Vec<GuestStatus>, taps: usize) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            shadow_all: self.shadow_all,
            directory: self.directory.clone(),
            listing,
            degraded: None,
            unmanaged: Vec::new(),
            unwatched: None,
            sources: self.sources.iter().map(|it| source(it, counts)).collect(),
            guests,
            sinks: self.sinks.iter().map(|it| sink(it, counts)).collect(),
            taps,
            journal: self.journal.clone().map(|directory| JournalStatus {
                directory,
                bytes: counts.journal.bytes.load(Ordering::Relaxed),
                written: counts.journal.written.get(),
                unjournaled: counts.journal.unjournaled.get(),
                failing: counts.journal.failing.load(Ordering::Relaxed),
            }),
        }
    }
}

fn source((name, kind, mode): &(String, SourceKind, Mode), counts: &Counts) -> SourceStatus {
    let counts = counts.source(name);
    let connected = counts.is_connected();
    SourceStatus {
        source: name.clone(),
        r#type: kind.name().to_owned(),
        mode: *mode,
        connected,
        problem: counts.problem().filter(|_| !connected),
        signals: counts.signals.get(),
        lost: counts.lost.get(),
        refused: counts.refused.get(),
    }
}

fn sink((name, kind): &(String, &'static str), counts: &Counts) -> SinkStatus {
    let counts = counts.sink(name);
    SinkStatus {
        sink: name.clone(),
        r#type: (*kind).to_owned(),
        delivered: counts.delivered.get(),
        failed: counts.failed.get(),
        queued: counts.queued(),
        queued_since_ms: counts.queued_since_ms(),
        dropped: counts.dropped.all().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        problem: counts.problem(),
    }
}
