//! The control socket: answers `coroner status`, `coroner policy`, `coroner guest` and `coroner tap`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coroner_proto::control::{
    AddGuestRequest, Answer, InspectPolicyRequest, ListGuestsRequest, ListPoliciesRequest,
    PromotePolicyRequest, ReleasePolicyRequest, ReloadPoliciesRequest, RemoveGuestRequest, StatusRequest,
    TapRequest, TapResponse,
};
use coroner_proto::control_ttrpc::{Control, create_control};
use serde::Serialize;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

use crate::config::{Config, Mode, SourceKind};
use crate::counts::Counts;
use crate::guests::{GuestError, GuestStatus, Guests};
use crate::policy::Policies;
use crate::policy::report::Listing;
use crate::tap::{Filter, Tap};

/// Why nobody can ask this router.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the control socket {path} (control.socket): {source}")]
pub struct ControlError {
    /// Which.
    pub path: String,
    /// Why.
    pub source: io::Error,
}

/// What a running router answers.
#[derive(Debug)]
pub struct Service {
    /// The part that knows policies.
    pub policies: Policies,
    /// The part that knows guests.
    pub guests: Guests,
    /// What is counted.
    pub counts: Arc<Counts>,
    /// The records of now.
    pub tap: Tap,
    /// Turns true when nobody is to wait for an answer any more.
    pub stop: watch::Receiver<bool>,
    /// What does not change.
    pub about: About,
}

/// What does not change while a router runs.
#[derive(Debug)]
pub struct About {
    node: String,
    started: Instant,
    shadow_all: bool,
    directory: Option<String>,
    journal: Option<String>,
    sources: Vec<(String, SourceKind, Mode)>,
    sinks: Vec<(String, &'static str)>,
}

impl About {
    /// Of a router with this configuration that starts now.
    pub fn new(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            started: Instant::now(),
            shadow_all: config.policies.shadow_all,
            directory: config.policies.directory.as_ref().map(|path| path.display().to_string()),
            journal: config.journal.as_ref().map(|it| it.directory.display().to_string()),
            sources: config.sources.iter().map(|it| (it.name.clone(), it.kind, it.mode)).collect(),
            sinks: config.sinks.iter().map(|it| (it.name.clone(), it.kind.name())).collect(),
        }
    }
}

/// Opens the socket; only root and the router's own user can connect. To be called on the runtime.
pub fn listen(path: &Path) -> Result<Listener, ControlError> {
    let failed = |source| ControlError { path: path.display().to_string(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir(folder).map_err(failed)?;
    }
    coroner_proto::transport::private(path).map_err(failed)
}

/// Takes a socket that was opened by whoever started this process, and outlives it: who connects before the router serves waits.
pub fn passed(listener: std::os::unix::net::UnixListener) -> Result<Listener, ControlError> {
    let path = listener.local_addr().ok().and_then(|it| Some(it.as_pathname()?.display().to_string()));
    let failed = |source| ControlError { path: path.unwrap_or_default(), source };
    coroner_proto::transport::adopted(listener).map_err(failed)
}

/// Answers until told to stop.
pub async fn serve(listener: Listener, service: Service, mut stop: watch::Receiver<bool>) {
    let mut server = Server::new().add_listener(listener).register_service(create_control(Arc::new(service)));
    if let Err(error) = server.start().await {
        tracing::error!(%error, "nobody can ask this router");
    }
    // The sender is gone: the router has stopped.
    stop.wait_for(|it| *it).await.map(drop).unwrap_or(());
    server.shutdown().await.unwrap_or(());
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status<'a> {
    version: &'static str,
    node: &'a str,
    pid: u32,
    uptime_ms: u64,
    shadow_all: bool,
    directory: Option<&'a str>,
    #[serde(flatten)]
    listing: Listing,
    sources: Vec<SourceStatus<'a>>,
    guests: Vec<GuestStatus>,
    sinks: Vec<SinkStatus<'a>>,
    journal: Option<JournalStatus<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct JournalStatus<'a> {
    directory: &'a str,
    bytes: u64,
    written: u64,
    unjournaled: u64,
    failing: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SourceStatus<'a> {
    source: &'a str,
    r#type: &'static str,
    mode: Mode,
    connected: bool,
    signals: u64,
    lost: u64,
    refused: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SinkStatus<'a> {
    sink: &'a str,
    r#type: &'static str,
    delivered: u64,
    failed: u64,
    dropped: BTreeMap<&'static str, u64>,
}

impl Service {
    fn status<'a>(&'a self, listing: Listing, guests: Vec<GuestStatus>) -> Status<'a> {
        let source = |(name, kind, mode): &'a (String, SourceKind, Mode)| {
            let counts = self.counts.source(name);
            SourceStatus {
                source: name,
                r#type: kind.name(),
                mode: *mode,
                connected: counts.is_connected(),
                signals: counts.signals.get(),
                lost: counts.lost.get(),
                refused: counts.refused.get(),
            }
        };
        let sink = |(name, kind): &'a (String, &'static str)| {
            let counts = self.counts.sink(name);
            SinkStatus {
                sink: name,
                r#type: kind,
                delivered: counts.delivered.get(),
                failed: counts.failed.get(),
                dropped: counts.dropped.all().collect(),
            }
        };
        let about = &self.about;
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node: &about.node,
            pid: std::process::id(),
            uptime_ms: u64::try_from(about.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            shadow_all: about.shadow_all,
            directory: about.directory.as_deref(),
            listing,
            sources: about.sources.iter().map(source).collect(),
            guests,
            sinks: about.sinks.iter().map(sink).collect(),
            journal: about.journal.as_deref().map(|directory| JournalStatus {
                directory,
                bytes: self.counts.journal.bytes.load(Ordering::Relaxed),
                written: self.counts.journal.written.get(),
                unjournaled: self.counts.journal.unjournaled.get(),
                failing: self.counts.journal.failing.load(Ordering::Relaxed),
            }),
        }
    }

    /// Says which there are: whoever asked mistyped one of them.
    async fn named<T: Serialize>(&self, name: &str, answer: Option<Option<T>>) -> ttrpc::Result<Answer> {
        if let Some(found) = answer.ok_or_else(stopping)? {
            return Ok(json(&found));
        }
        let listing = self.policies.list().await.ok_or_else(stopping)?;
        let names: Vec<&str> = listing.chain.iter().map(|policy| policy.policy.as_str()).collect();
        let mut message = format!("no policy {name} is in the chain; there are {}", names.join(", "));
        if let Some(refused) = listing.refused.iter().find(|it| it.subject.starts_with(name)) {
            message = format!("{message}. It was refused: {}", refused.reason);
        }
        Err(Error::RpcStatus(get_status(Code::NOT_FOUND, message)))
    }
}

fn unanswered(error: &GuestError) -> Error {
    let code = match error {
        GuestError::Wrong(_) => Code::INVALID_ARGUMENT,
        GuestError::Taken(_) => Code::ALREADY_EXISTS,
        GuestError::Unknown { .. } => Code::NOT_FOUND,
        GuestError::Configured(_) => Code::FAILED_PRECONDITION,
        GuestError::Full => Code::RESOURCE_EXHAUSTED,
        GuestError::Keep { .. } => Code::INTERNAL,
        GuestError::Stopping => Code::UNAVAILABLE,
    };
    Error::RpcStatus(get_status(code, error.to_string()))
}

fn stopping() -> Error {
    Error::RpcStatus(get_status(Code::UNAVAILABLE, "the router is stopping"))
}

fn json(document: &impl Serialize) -> Answer {
    let json = serde_json::to_string(document).expect("reports hold nothing JSON cannot say");
    Answer { json, ..Answer::default() }
}

#[async_trait]
impl Control for Service {
    async fn status(&self, _: &TtrpcContext, _: StatusRequest) -> ttrpc::Result<Answer> {
        let listing = self.policies.list().await.ok_or_else(stopping)?;
        let guests = self.guests.list().await.map_err(|error| unanswered(&error))?;
        Ok(json(&Service::status(self, listing, guests)))
    }

    async fn list_policies(&self, _: &TtrpcContext, _: ListPoliciesRequest) -> ttrpc::Result<Answer> {
        Ok(json(&self.policies.list().await.ok_or_else(stopping)?))
    }

    async fn inspect_policy(&self, _: &TtrpcContext, request: InspectPolicyRequest) -> ttrpc::Result<Answer> {
        self.named(&request.name, self.policies.inspect(request.name.clone()).await).await
    }

    async fn reload_policies(&self, _: &TtrpcContext, _: ReloadPoliciesRequest) -> ttrpc::Result<Answer> {
        Ok(json(&self.policies.reload().await.ok_or_else(stopping)?))
    }

    async fn promote_policy(&self, _: &TtrpcContext, request: PromotePolicyRequest) -> ttrpc::Result<Answer> {
        self.named(&request.name, self.policies.promote(request.name.clone(), request.force).await).await
    }

    async fn release_policy(&self, _: &TtrpcContext, request: ReleasePolicyRequest) -> ttrpc::Result<Answer> {
        self.named(&request.name, self.policies.release(request.name.clone()).await).await
    }

    async fn add_guest(&self, _: &TtrpcContext, request: AddGuestRequest) -> ttrpc::Result<Answer> {
        let added = self.guests.add(request.guest).await;
        added.map(|guest| json(&guest)).map_err(|error| unanswered(&error))
    }

    async fn remove_guest(&self, _: &TtrpcContext, request: RemoveGuestRequest) -> ttrpc::Result<Answer> {
        let removed = self.guests.remove(request.name).await;
        removed.map(|guest| json(&guest)).map_err(|error| unanswered(&error))
    }

    async fn list_guests(&self, _: &TtrpcContext, _: ListGuestsRequest) -> ttrpc::Result<Answer> {
        let guests = self.guests.list().await.map_err(|error| unanswered(&error))?;
        Ok(json(&serde_json::json!({ "guests": guests })))
    }

    async fn tap(&self, _: &TtrpcContext, request: TapRequest) -> ttrpc::Result<TapResponse> {
        let given = |text: String| (!text.is_empty()).then_some(text);
        let filter = Filter {
            container: given(request.container),
            pod: given(request.pod),
            namespace: given(request.namespace),
            kind: given(request.kind),
        };
        let wait = Duration::from_millis(request.wait_ms.into());
        let page = self.tap.read(request.after, &filter, wait, self.stop.clone()).await;
        let records = page.records.iter().map(|line| line.trim_end().to_owned()).collect();
        Ok(TapResponse { records, next: page.next, missed: page.missed, ..TapResponse::default() })
    }
}
