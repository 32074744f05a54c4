//! The cache of pod metadata: pod, namespace, name and image by container id.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coroner_core::signal::ContainerId;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use crate::container::{Identity, look_up};
use crate::grpc::connect;

/// Cached identities. Without a bound a node that runs short jobs for a year would keep each one.
const CACHE: usize = 8192;
/// Delay before an unknown container is looked up again: its signal may have been early.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// Timeout of a look-up. A ruling waits at most this long; rulings on other containers do not wait.
const TIMEOUT: Duration = Duration::from_millis(250);
/// After a timeout containers stay unknown for this long, so that not every signal waits for it.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// The cache of identities.
#[derive(Debug)]
pub struct Identities {
    channel: Option<Channel>,
    known: HashMap<ContainerId, Arc<Identity>>,
    order: VecDeque<ContainerId>,
    unknown: HashMap<ContainerId, Instant>,
    silent_until: Option<Instant>,
    nothing: Arc<Identity>,
}

impl Identities {
    /// A cache for the containerd at `address`; without one every container stays unknown.
    pub fn new(address: Option<PathBuf>) -> Self {
        Self {
            channel: address.map(connect),
            known: HashMap::new(),
            order: VecDeque::new(),
            unknown: HashMap::new(),
            silent_until: None,
            nothing: Arc::default(),
        }
    }

    /// The cached identity; all unknown if containerd does not know the container or does not
    /// answer. If a look-up is needed, returns its request, so that the caller need not block on
    /// it.
    pub fn of(&mut self, id: &ContainerId) -> Result<Arc<Identity>, IdentityLookup> {
        if let Some(identity) = self.known.get(id) {
            return Ok(Arc::clone(identity));
        }
        let now = Instant::now();
        let early = self.unknown.get(id).is_some_and(|until| now < *until);
        match (self.channel.clone(), early, self.silent_until.is_some_and(|until| now < until)) {
            (Some(channel), false, false) => Err(IdentityLookup { channel, id: id.clone() }),
            (None, ..) | (Some(_), true, _) | (Some(_), _, true) => Ok(Arc::clone(&self.nothing)),
        }
    }

    /// Caches the result of a look-up and returns the identity.
    pub fn insert(&mut self, answer: LookupResult) -> Arc<Identity> {
        let (id, now) = (&answer.id, Instant::now());
        match answer.found {
            Ok(Some(identity)) => {
                self.silent_until = None;
                self.keep(id, Arc::new(identity))
            }
            Ok(None) => {
                self.silent_until = None;
                self.unknown.retain(|_, until| now < *until);
                if self.unknown.len() < CACHE {
                    self.unknown.insert(id.clone(), now + UNKNOWN_FOR);
                }
                Arc::clone(&self.nothing)
            }
            Err(error) => self.silent(now, &error),
        }
    }

    fn keep(&mut self, id: &ContainerId, identity: Arc<Identity>) -> Arc<Identity> {
        if self.order.len() == CACHE
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.known.insert(id.clone(), Arc::clone(&identity));
        identity
    }

    fn silent(&mut self, now: Instant, error: &str) -> Arc<Identity> {
        if self.silent_until.is_none() {
            tracing::warn!(error, "identity lookup failed; identities stay unknown until containerd answers");
        }
        self.silent_until = Some(now + SILENT_FOR);
        Arc::clone(&self.nothing)
    }
}

/// A look-up that was not made yet.
#[derive(Debug)]
pub struct IdentityLookup {
    channel: Channel,
    id: ContainerId,
}

/// The result of a look-up.
#[derive(Debug)]
pub struct LookupResult {
    /// Id of the container.
    pub id: ContainerId,
    found: Result<Option<Identity>, String>,
}

impl LookupResult {
    /// containerd does not know the container.
    pub fn unknown(id: ContainerId) -> Self {
        Self { id, found: Ok(None) }
    }
}

impl IdentityLookup {
    /// Queries containerd, with a timeout.
    pub async fn run(self) -> LookupResult {
        let found = match timeout(TIMEOUT, look_up(self.channel, self.id.as_str())).await {
            Ok(found) => found.map_err(|status| status.message().to_owned()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        LookupResult { id: self.id, found }
    }
}
