//! The routes of the control socket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Response, StatusCode};
use axum::routing::{delete, get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::document::{GuestList, StatusReader};
use super::probes::{Probes, with_errors};
use super::problem::{Problem, json};
use super::stream::{self, Wanted};
use crate::guests::GuestClient;
use coroner_policy::PolicyClient;
use coroner_sinks::tap::Tap;

/// Bytes of a request's body: a guest with a hundred containers takes 8 KiB. Without a limit a
/// client could fill the router's memory.
const BODY: usize = 64 << 10;
/// A body must be complete by then. Without it a client that stops in the middle would keep its
/// connection busy for ever.
const BODY_TIME: Duration = Duration::from_secs(5);

/// What the control socket serves.
#[derive(Debug)]
pub struct AdminService {
    /// The policies.
    pub policies: PolicyClient,
    /// The guests.
    pub guests: GuestClient,
    /// The latest audit records.
    pub tap: Tap,
    /// Turns true when the router stops: streams end then.
    pub stop: watch::Receiver<bool>,
    /// The status document.
    pub status: StatusReader,
}

#[derive(Debug)]
struct RouteState {
    service: AdminService,
    streams: Arc<Semaphore>,
}

type SharedState = State<Arc<RouteState>>;
type RouteResult = Result<Response<Body>, Problem>;
type NamePath = Result<Path<String>, PathRejection>;

impl AdminService {
    /// Every route.
    pub fn routes(self, probes: Probes) -> Router {
        let streams = Arc::new(Semaphore::new(stream::MOST));
        let routes = Router::new()
            .route("/status", get(status))
            .route("/policies", get(policies))
            .route("/policies/reload", post(reload))
            .route("/policies/{name}", get(inspect))
            .route("/policies/{name}/promote", post(promote))
            .route("/policies/{name}/release", post(release))
            .route("/guests", get(guests).post(add_guest))
            .route("/guests/{name}", delete(remove_guest))
            .route("/tap", get(tap))
            .with_state(Arc::new(RouteState { service: self, streams }));
        with_errors(routes.merge(probes.open()))
    }

    /// A report on the policy of this name, or an error that lists the names there are.
    async fn of_policy<T: Serialize>(&self, name: &str, report: Option<Option<T>>) -> RouteResult {
        if let Some(report) = report.ok_or_else(Problem::stopping)? {
            return Ok(json(StatusCode::OK, &report));
        }
        let listing = self.policies.list().await.ok_or_else(Problem::stopping)?;
        let names: Vec<&str> = listing.chain.iter().map(|policy| policy.policy.as_str()).collect();
        let hint = format!("the chain has {}", names.join(", "));
        let refused = listing.refused.iter().find(|it| it.subject.starts_with(name));
        let refused = refused.map(|it| format!(": it was refused: {}", it.reason)).unwrap_or_default();
        let error = format!("no policy {name} is in the chain{refused}");
        Err(Problem::new(StatusCode::NOT_FOUND, error, hint))
    }
}

fn name(name: NamePath) -> Result<String, Problem> {
    name.map(|Path(name)| name).map_err(|error| Problem::bad_request(error.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| Problem::bad_request(error.body_text()))
}

async fn status(State(shared): SharedState) -> RouteResult {
    let taps = stream::MOST - shared.streams.available_permits();
    let status = shared.service.status.read(taps).await.ok_or_else(Problem::stopping)?;
    Ok(json(StatusCode::OK, &status))
}

async fn policies(State(shared): SharedState) -> RouteResult {
    let listing = shared.service.policies.list().await.ok_or_else(Problem::stopping)?;
    Ok(json(StatusCode::OK, &listing))
}

async fn reload(State(shared): SharedState) -> RouteResult {
    let reloaded = shared.service.policies.reload().await.ok_or_else(Problem::stopping)?;
    Ok(json(StatusCode::OK, &reloaded))
}

async fn inspect(State(shared): SharedState, path: NamePath) -> RouteResult {
    let (name, service) = (name(path)?, &shared.service);
    let report = service.policies.inspect(name.clone()).await;
    service.of_policy(&name, report).await
}

/// The query of a promotion.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Force {
    #[serde(default)]
    force: bool,
}

async fn promote(
    State(shared): SharedState,
    path: NamePath,
    force: Result<Query<Force>, QueryRejection>,
) -> RouteResult {
    let (name, service, force) = (name(path)?, &shared.service, query(force)?.force);
    let report = service.policies.promote(name.clone(), force).await;
    service.of_policy(&name, report).await
}

async fn release(State(shared): SharedState, path: NamePath) -> RouteResult {
    let (name, service) = (name(path)?, &shared.service);
    let report = service.policies.release(name.clone()).await;
    service.of_policy(&name, report).await
}

async fn guests(State(shared): SharedState) -> RouteResult {
    Ok(json(StatusCode::OK, &GuestList { guests: shared.service.guests.list().await? }))
}

async fn add_guest(State(shared): SharedState, body: Body) -> RouteResult {
    let read = timeout(BODY_TIME, to_bytes(body, BODY)).await;
    let body = read.map_err(|_| {
        let error = format!("the request's body is not complete after {} s", BODY_TIME.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, error, "send the whole body at once")
    })?;
    let body = body.map_err(|error| {
        let error = format!("the request's body cannot be read: {error}");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error, format!("at most {} KiB are read", BODY >> 10))
    })?;
    let text = String::from_utf8(body.into()).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    Ok(json(StatusCode::CREATED, &shared.service.guests.add(text).await?))
}

async fn remove_guest(State(shared): SharedState, path: NamePath) -> RouteResult {
    Ok(json(StatusCode::OK, &shared.service.guests.remove(name(path)?).await?))
}

async fn tap(State(shared): SharedState, wanted: Result<Query<Wanted>, QueryRejection>) -> RouteResult {
    let wanted = query(wanted)?.check()?;
    let permit = Arc::clone(&shared.streams).try_acquire_owned().map_err(|_| {
        let error = format!("{} taps are open already", stream::MOST);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, "end one of them")
    })?;
    Ok(stream::open(&shared.service.tap, wanted, shared.service.stop.clone(), permit).await)
}
