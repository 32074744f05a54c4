//! `/metrics`, `/live` and `/ready`: the routes that change nothing and name no container.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header::CONTENT_TYPE};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::metrics::registry;
use super::problem::{self, Problem};
use crate::config::Config;
use crate::counts::{Counts, SinkCounts};
use crate::node_watch::NodeWatch;
use coroner_policy::ActiveChain;

/// The content type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the probes read.
#[derive(Clone, Debug)]
pub struct Probes {
    registry: Arc<Registry>,
    chain: ActiveChain,
    /// The sink that publishes lifecycle events, by name.
    lifecycle: Option<(String, Arc<SinkCounts>)>,
}

impl Probes {
    /// The probes of a router with this configuration.
    pub fn new(config: &Config, counts: &Arc<Counts>, chain: ActiveChain) -> Self {
        let lifecycle = config.sinks.iter().find(|it| it.kind.is_lifecycle());
        Self {
            registry: Arc::new(registry(Arc::clone(counts), NodeWatch::new(config, counts), chain.clone())),
            lifecycle: lifecycle.map(|it| (it.name.clone(), counts.sink(&it.name))),
            chain,
        }
    }

    /// The routes. Every answer is an error for a path or method that is not one of them.
    pub fn routes(self) -> Router {
        with_errors(self.open())
    }

    pub(super) fn open(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/live", get(live))
            .route("/ready", get(ready))
            .with_state(self)
    }

    /// Why the router is not ready.
    fn not_ready(&self) -> Option<Problem> {
        let not_ready =
            |error: String, hint: &str| Some(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, hint));
        if !self.chain.reading().is_loaded() {
            let error = "the policy directory was never read: the built-in default rules".to_owned();
            return not_ready(error, "`coroner status` has the reason");
        }
        let (sink, counts) = self.lifecycle.as_ref()?;
        let problem = counts.problem()?;
        not_ready(format!("sink {sink} is not connected: {problem}"), "check that containerd runs")
    }
}

pub(super) fn with_errors(routes: Router) -> Router {
    routes.fallback(Problem::no_route).method_not_allowed_fallback(Problem::wrong_method)
}

async fn metrics(State(probes): State<Probes>) -> Result<Response<Body>, Problem> {
    let mut text = String::new();
    encode(&mut text, &probes.registry).map_err(|error| {
        let error = format!("the metrics cannot be encoded: {error}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error, "report this as a bug")
    })?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, OPEN_METRICS.parse().expect("a header's value"));
    Ok(response)
}

/// The process runs and its runtime answers.
async fn live() -> Response<Body> {
    problem::json(StatusCode::OK, &json!({ "live": true }))
}

/// The chain is loaded and the lifecycle sink is connected.
async fn ready(State(probes): State<Probes>) -> Result<Response<Body>, Problem> {
    match probes.not_ready() {
        Some(problem) => Err(problem),
        None => Ok(problem::json(StatusCode::OK, &json!({ "ready": true }))),
    }
}
