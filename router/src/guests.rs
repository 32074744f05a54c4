//! Guests at run time: one task for each, started and stopped by request. Added guests are kept in
//! a file over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Mistake, Source};
use crate::counts::{Counts, LinkState, SourceCounts};
use crate::source_factory::SourceFactory;
use coroner_core::mode::Mode;
use coroner_sources::envelope::Guest;
use coroner_sources::ownership::Registered;

/// Requests in the channel; each is answered in microseconds.
const REQUESTS: usize = 16;
/// Guests at once: each takes some 30 KiB. Without a bound a program that adds guests could fill
/// the node's memory.
const MOST: usize = 10_000;

/// Why a guest was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Its keys are invalid.
    #[error("{}", list(.0))]
    Wrong(Vec<Mistake>),
    /// Another source has the name.
    #[error("a guest or source is named {0} already")]
    Taken(String),
    /// There is no guest of this name.
    #[error("no guest is named {name}; there are {}", if .existing.is_empty() { "none".to_owned() } else { .existing.join(", ") })]
    Unknown {
        /// The requested name.
        name: String,
        /// The existing names.
        existing: Vec<String>,
    },
    /// The guest is in the configuration file.
    #[error("guest {0} is in the configuration file")]
    Configured(String),
    /// The limit of guests is reached.
    #[error("there are {MOST} guests already")]
    Full,
    /// The file of added guests cannot be written.
    #[error("cannot write the guest to {path} (guests.directory): {source}")]
    Keep {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The router is stopping.
    #[error("the router is stopping")]
    Stopping,
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|it| format!("{}: {}", it.key, it.message)).collect::<Vec<_>>().join("; ")
}

/// One guest, as `coroner guest list` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestStatus {
    /// Its name.
    pub guest: String,
    /// `agent` or `kata`.
    pub r#type: String,
    /// Its mode.
    pub mode: Mode,
    /// The address of its agent.
    pub address: String,
    /// Whether the configuration file has it.
    pub configured: bool,
    /// The state of its link.
    pub state: LinkState,
    /// Number of containers that it reports for.
    pub containers: u64,
    /// Signals received.
    pub signals: u64,
    /// Signals that its agent dropped before they were read.
    pub lost: u64,
    /// Signals of containers that are not its own, or malformed.
    pub refused: u64,
    /// Pressure signals dropped by the rate limit.
    pub held_back: u64,
    /// Connections that were made.
    pub links: u64,
    /// Why the last connection ended.
    pub problem: Option<String>,
}

type Reply<T> = oneshot::Sender<Result<T, GuestError>>;

/// A request to the guest manager.
#[derive(Debug)]
pub enum GuestRequest {
    /// Add a guest.
    Add(Box<(String, Source)>, Reply<GuestStatus>),
    /// Remove a guest.
    Remove(String, Reply<GuestStatus>),
    /// List all guests.
    List(Reply<Vec<GuestStatus>>),
}

/// The client of the guest manager.
#[derive(Clone, Debug)]
pub struct GuestClient(mpsc::Sender<GuestRequest>);

impl GuestClient {
    /// Both ends of the channel.
    pub fn channel() -> (Self, mpsc::Receiver<GuestRequest>) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        (Self(sender), requests)
    }

    /// Adds a guest; `json` has its keys.
    pub async fn add(&self, json: String) -> Result<GuestStatus, GuestError> {
        let source = Config::guest(&json).map_err(GuestError::Wrong)?;
        self.request(|answer| GuestRequest::Add(Box::new((json, source)), answer)).await
    }

    /// Removes a guest and reports `guest-lost` for its running containers.
    pub async fn remove(&self, name: String) -> Result<GuestStatus, GuestError> {
        self.request(|answer| GuestRequest::Remove(name, answer)).await
    }

    /// All guests, by name.
    pub async fn list(&self) -> Result<Vec<GuestStatus>, GuestError> {
        self.request(GuestRequest::List).await
    }

    async fn request<T>(&self, request: impl FnOnce(Reply<T>) -> GuestRequest) -> Result<T, GuestError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.map_err(|_| GuestError::Stopping)?;
        answered.await.map_err(|_| GuestError::Stopping)?
    }
}

struct Followed {
    source: Source,
    configured: bool,
    counts: Arc<SourceCounts>,
    removed: watch::Sender<bool>,
}

impl Followed {
    fn status(&self) -> GuestStatus {
        let counts = &self.counts;
        GuestStatus {
            guest: self.source.name.clone(),
            r#type: self.source.kind.name().to_owned(),
            mode: self.source.mode,
            address: self.source.address.to_string(),
            configured: self.configured,
            state: counts.state(),
            containers: counts.containers(),
            signals: counts.signals.get(),
            lost: counts.lost.get(),
            refused: counts.refused.get(),
            held_back: counts.held_back.get(),
            links: counts.links.get(),
            problem: counts.problem(),
        }
    }
}

/// Starts and stops the guests' sources.
#[expect(missing_debug_implementations, reason = "its tasks have no debug format")]
pub struct GuestManager {
    directory: PathBuf,
    /// Names in use by other sources.
    taken: Vec<String>,
    counts: Arc<Counts>,
    registered: Registered,
    sources: SourceFactory,
    followed: BTreeMap<String, Followed>,
    /// Tasks outside of the router's own set: they come and go, and a failed one ends no other.
    tasks: JoinSet<()>,
}

impl GuestManager {
    /// The manager of a configuration. Must be called on the runtime.
    pub fn new(config: &Config, counts: Arc<Counts>, registered: Registered, sources: SourceFactory) -> Self {
        let mut manager = Self {
            directory: config.guests_directory.clone(),
            taken: config.sources.iter().map(|it| it.name.clone()).collect(),
            counts,
            registered,
            sources,
            followed: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        for guest in &config.guests {
            manager.follow(guest.clone(), true);
        }
        manager.resume_kept();
        manager.sources.recovered.forget(|source| {
            manager.taken.iter().any(|it| it == source) || manager.followed.contains_key(source)
        });
        manager
    }

    /// Answers requests until the shutdown, then waits for every guest's task.
    pub async fn run(mut self, mut requests: mpsc::Receiver<GuestRequest>) {
        let mut stop = self.sources.stop.clone();
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.answer(request),
                    None => break,
                },
                Some(ended) = self.tasks.join_next() => ended_early(ended),
                _ = stop.wait_for(|it| *it) => break,
            }
        }
        drop(self.sources);
        while let Some(ended) = self.tasks.join_next().await {
            ended_early(ended);
        }
    }

    fn answer(&mut self, request: GuestRequest) {
        // A requester that is gone gets no answer.
        match request {
            GuestRequest::Add(guest, answer) => drop(answer.send(self.add(&guest.0, guest.1))),
            GuestRequest::Remove(name, answer) => drop(answer.send(self.remove(&name))),
            GuestRequest::List(answer) => {
                drop(answer.send(Ok(self.followed.values().map(Followed::status).collect())));
            }
        }
    }

    fn add(&mut self, json: &str, source: Source) -> Result<GuestStatus, GuestError> {
        let name = source.name.clone();
        if self.taken.contains(&name) || self.followed.contains_key(&name) {
            return Err(GuestError::Taken(name));
        }
        if self.followed.len() >= MOST {
            return Err(GuestError::Full);
        }
        let path = self.kept(&name);
        keep(&self.directory, &path, json).map_err(|source| GuestError::Keep { path, source })?;
        Ok(self.follow(source, false))
    }

    fn remove(&mut self, name: &str) -> Result<GuestStatus, GuestError> {
        let Some(guest) = self.followed.get(name) else {
            let existing = self.followed.keys().cloned().collect();
            return Err(GuestError::Unknown { name: name.to_owned(), existing });
        };
        if guest.configured {
            return Err(GuestError::Configured(name.to_owned()));
        }
        let path = self.kept(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(GuestError::Keep { path, source });
            }
            _ => {}
        }
        let Some(guest) = self.followed.remove(name) else { return Err(GuestError::Stopping) };
        guest.removed.send_replace(true);
        self.counts.guests.remove(name);
        tracing::info!(guest = name, "guest removed");
        Ok(guest.status())
    }

    fn follow(&mut self, source: Source, configured: bool) -> GuestStatus {
        let counts: Arc<SourceCounts> = Arc::default();
        let containers = source.machine.as_ref().and_then(|machine| machine.containers.clone());
        let guest = Arc::new(Guest { name: source.name.clone(), containers, counts: Arc::clone(&counts) });
        self.registered.add(&guest);
        let (removed, receiver) = watch::channel(false);
        self.tasks.spawn(self.sources.task(&source, Arc::clone(&counts), Some((guest, receiver))));
        self.counts.guests.add(&source.name, Arc::clone(&counts));
        let name = source.name.clone();
        let followed = Followed { source, configured, counts, removed };
        let status = followed.status();
        self.followed.insert(name, followed);
        status
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.directory.join(name).with_extension("json")
    }

    /// Adds the guests that the file has from an earlier run of this router.
    fn resume_kept(&mut self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|it| it == "json")) {
            let read = fs::read_to_string(path).map_err(|error| error.to_string());
            let source = read.and_then(|json| Config::guest(&json).map_err(|mistakes| list(&mistakes)));
            match source {
                Ok(source)
                    if self.taken.contains(&source.name) || self.followed.contains_key(&source.name) =>
                {
                    tracing::warn!(path = %path.display(), "guest skipped: the configuration file has its name");
                }
                Ok(source) => drop(self.follow(source, false)),
                Err(error) => tracing::error!(path = %path.display(), error, "cannot resume the guest"),
            }
        }
    }
}

fn ended_early(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a guest's task failed; add the guest again");
    }
}

/// Writes a temporary file and renames it, so that the file is always whole. Readable by root and
/// the router's own user only.
fn keep(directory: &Path, path: &Path, json: &str) -> io::Result<()> {
    if !directory.is_dir() {
        // The parents are shared with others, such as the control socket: default rights.
        directory.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let partial = path.with_extension("partial");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(json.as_bytes())?;
    fs::rename(partial, path)
}
