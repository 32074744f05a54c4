//! Guests that come and go while the router runs: follows each by one task, and keeps those that were added over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::arrival::{Arrival, Guest};
use crate::claims::Registered;
use crate::config::{Config, Mistake, Mode, Source, SourceKind};
use crate::counts::{Counts, SourceCounts};
use crate::source::agent::AgentSource;
use crate::source::kata::KataSource;
use crate::source::{Orders, Past, Settlers};

/// Questions that may wait; each is answered in microseconds.
const QUESTIONS: usize = 16;
/// Guests followed at once: each takes some 30 KiB. Who may add guests could otherwise fill the node's memory.
const MOST: usize = 10_000;

/// Why a guest was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// What was said of it is wrong.
    #[error("{}", list(.0))]
    Wrong(Vec<Mistake>),
    /// Another has the name.
    #[error("a guest or source is named {0} already; `coroner guest list` shows them")]
    Taken(String),
    /// Nobody has the name.
    #[error("no guest is named {name}; there are {}", if .there.is_empty() { "none".to_owned() } else { .there.join(", ") })]
    Unknown {
        /// Which.
        name: String,
        /// Those there are.
        there: Vec<String>,
    },
    /// The configuration file has it.
    #[error("guest {0} is in the configuration file: remove it there, and restart the router")]
    Configured(String),
    /// There are too many.
    #[error("there are {MOST} guests already")]
    Full,
    /// It could not be kept.
    #[error("guest not kept in {path} (guests.directory): {source}")]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The router stops.
    #[error("the router is stopping")]
    Stopping,
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|it| format!("{}: {}", it.key, it.message)).collect::<Vec<_>>().join("; ")
}

/// One guest, as `coroner guest list` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestStatus {
    guest: String,
    r#type: &'static str,
    mode: Mode,
    address: String,
    configured: bool,
    state: &'static str,
    containers: u64,
    signals: u64,
    lost: u64,
    refused: u64,
    held_back: u64,
    links: u64,
    problem: Option<String>,
}

type Answer<T> = oneshot::Sender<Result<T, GuestError>>;

/// A question to the guests' keeper.
#[derive(Debug)]
pub enum Ask {
    /// Follow one more.
    Add(Box<(String, Source)>, Answer<GuestStatus>),
    /// Follow it no more.
    Remove(String, Answer<GuestStatus>),
    /// Which there are.
    List(Answer<Vec<GuestStatus>>),
}

/// Where guests can be asked for.
#[derive(Clone, Debug)]
pub struct Guests(mpsc::Sender<Ask>);

impl Guests {
    /// An end to ask, and one to answer.
    pub fn channel() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(QUESTIONS);
        (Self(asks), asked)
    }

    /// Follows one more guest: its keys as a JSON object.
    pub async fn add(&self, json: String) -> Result<GuestStatus, GuestError> {
        let source = Config::guest(&json).map_err(GuestError::Wrong)?;
        self.ask(|answer| Ask::Add(Box::new((json, source)), answer)).await
    }

    /// Follows a guest no more: what lives in it is told lost.
    pub async fn remove(&self, name: String) -> Result<GuestStatus, GuestError> {
        self.ask(|answer| Ask::Remove(name, answer)).await
    }

    /// All of them, by name.
    pub async fn list(&self) -> Result<Vec<GuestStatus>, GuestError> {
        self.ask(Ask::List).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, GuestError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(ask(answer)).await.map_err(|_| GuestError::Stopping)?;
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
            r#type: self.source.kind.name(),
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

/// Follows guests.
#[expect(missing_debug_implementations, reason = "its tasks have no form to show")]
pub struct Keeper {
    node: String,
    directory: PathBuf,
    /// Names that sources have.
    taken: Vec<String>,
    arrivals: mpsc::Sender<Arrival>,
    counts: Arc<Counts>,
    registered: Registered,
    settlers: Settlers,
    past: Past,
    stop: watch::Receiver<bool>,
    followed: BTreeMap<String, Followed>,
    /// The only tasks that are not the router's own: they come and go, and one that fails ends nobody else.
    tasks: JoinSet<()>,
}

impl Keeper {
    /// Of a router with this configuration. To be called on the runtime.
    pub fn new(
        config: &Config,
        arrivals: mpsc::Sender<Arrival>,
        counts: Arc<Counts>,
        registered: Registered,
        settlers: Settlers,
        past: Past,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let mut keeper = Self {
            node: config.node.clone(),
            directory: config.guests_directory.clone(),
            taken: config.sources.iter().map(|it| it.name.clone()).collect(),
            arrivals,
            counts,
            registered,
            settlers,
            past,
            stop,
            followed: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        for guest in &config.guests {
            keeper.follow(guest.clone(), true);
        }
        keeper.take_kept();
        keeper.past.forget(|source| {
            keeper.taken.iter().any(|it| it == source) || keeper.followed.contains_key(source)
        });
        keeper
    }

    /// Answers until the router stops, then waits for every guest's task.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => break,
                },
                Some(ended) = self.tasks.join_next() => ended_early(ended),
                _ = stop.wait_for(|it| *it) => break,
            }
        }
        drop((self.arrivals, self.past));
        while let Some(ended) = self.tasks.join_next().await {
            ended_early(ended);
        }
    }

    fn answer(&mut self, ask: Ask) {
        // Who no longer waits for an answer gets none.
        match ask {
            Ask::Add(guest, answer) => drop(answer.send(self.add(&guest.0, guest.1))),
            Ask::Remove(name, answer) => drop(answer.send(self.remove(&name))),
            Ask::List(answer) => {
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
            let there = self.followed.keys().cloned().collect();
            return Err(GuestError::Unknown { name: name.to_owned(), there });
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
        let (removed, heard) = watch::channel(false);
        let orders = Orders { stop: self.stop.clone(), removed: Some(heard) };
        let (node, arrivals) = (self.node.clone(), self.arrivals.clone());
        let settlers = self.settlers.clone();
        let (followed, told, past) = (source.clone(), Arc::clone(&counts), self.past.of(&source.name));
        match source.kind {
            SourceKind::Agent => {
                let agent = AgentSource::new(followed, node, arrivals, told, Some(guest), past, settlers);
                self.tasks.spawn(agent.run(orders));
            }
            // The configuration's check lets no guest be one.
            SourceKind::Shim => {}
            SourceKind::Kata => {
                let kata = KataSource::new(followed, node, arrivals, told, Some(guest));
                self.tasks.spawn(kata.run(orders));
            }
        }
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

    /// Guests that were added to an earlier run of this router.
    fn take_kept(&mut self) {
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
                    tracing::warn!(path = %path.display(), "guest passed over: the configuration file has its name");
                }
                Ok(source) => drop(self.follow(source, false)),
                Err(error) => tracing::error!(path = %path.display(), error, "guest not taken up again"),
            }
        }
    }
}

fn ended_early(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a guest's task failed; add the guest again");
    }
}

/// Written beside and renamed: what is there is whole. For root and the router's own user alone.
fn keep(directory: &Path, path: &Path, json: &str) -> io::Result<()> {
    if !directory.is_dir() {
        // Those above it are for others too: the control socket is there.
        directory.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let partial = path.with_extension("partial");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(json.as_bytes())?;
    fs::rename(partial, path)
}
