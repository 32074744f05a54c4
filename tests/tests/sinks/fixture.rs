//! A router between a fake agent and a fake containerd, with the sinks a test gives it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::{Exited, OomKill, Signal, signal::Event};
use coroner_tests::guests;
use coroner_tests::router::{Router, usual_played};
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use serde_json::Value;
use ttrpc::asynchronous::Server;

use super::fakes::{FakeAgent, FakeContainerd, Took, serve};

/// What comes within this comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) router: Router,
    pub(crate) agent: Arc<FakeAgent>,
    pub(crate) took: Took,
    _servers: [Server; 2],
    seq: u64,
}

impl Fixture {
    /// In mode `beside`, with a policy that answers two reports to each signal. `sinks` is the
    /// configuration of sinks and routes.
    pub(crate) async fn reporting(scratch: Scratch, sinks: &str) -> Self {
        let policies = scratch.path("reporting");
        std::fs::create_dir(&policies).unwrap();
        std::fs::write(policies.join("50-reporter.wasm"), guests::component("reporter").unwrap()).unwrap();
        Self::start(scratch, "beside", "reporting", sinks).await
    }

    /// In mode `sole`, with the native default.
    pub(crate) async fn sole(scratch: Scratch, sinks: &str) -> Self {
        Self::start(scratch, "sole", "policies", sinks).await
    }

    async fn start(scratch: Scratch, mode: &str, policies: &str, sinks: &str) -> Self {
        let agent = Arc::new(FakeAgent::default());
        let served = serve(&agent, &scratch.path("agent.sock")).await;
        let (containerd, took) = FakeContainerd::serve(&scratch.path("containerd.sock"), 0).await;
        let usual = usual_played("n").replace("@DIR@/policies", &format!("@DIR@/{policies}"));
        let more = format!(
            r#"
            [metrics]
            address = "unix://@DIR@/metrics.sock"
            [[source]]
            name = "node"
            type = "agent"
            address = "unix://@DIR@/agent.sock"
            mode = "{mode}"
            {sinks}
            "#
        );
        let router = Router::start_in(scratch, &(usual + &more)).await.unwrap();
        Self { router, agent, took, _servers: [served, containerd], seq: 0 }
    }

    fn emit(&mut self, container: &str, exec_id: Option<String>, event: Event) {
        self.seq += 1;
        self.agent.emit(Signal {
            seq: self.seq,
            container_id: container.to_owned(),
            exec_id,
            boot_ns: self.seq,
            wall_ms: 1_700_000_000_000 + self.seq,
            event: Some(event),
            ..Signal::default()
        });
    }

    pub(crate) fn kill(&mut self, container: &str) {
        self.emit(container, None, Event::OomKill(OomKill { total: 1, added: 1, ..OomKill::default() }));
    }

    pub(crate) fn exit(&mut self, container: &str) {
        self.emit(container, None, exited(true));
    }

    /// Emits so many exits, of execs `NAME-0`, `NAME-1` ... of one container: they stay in order.
    /// All are dealt with on return.
    pub(crate) async fn exits(&mut self, name: &str, count: usize) {
        for at in 0..count {
            self.emit(name, Some(format!("{name}-{at}")), exited(false));
        }
        self.dealt_with().await;
    }

    /// Waits until all that was emitted is dealt with.
    pub(crate) async fn dealt_with(&self) {
        self.agent.acked(self.seq).await;
    }

    /// What `coroner status` shows of a sink, once it is as `wanted`.
    pub(crate) async fn sink(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let what = format!("the status of the sink {name}");
        let sink = until(&what, PATIENCE, async || {
            let status = self.router.request(&["status"])?;
            let sinks = status["sinks"].as_array().into_iter().flatten();
            Ok(sinks.filter(|it| it["sink"] == name).find(|it| wanted(it)).cloned())
        });
        match sink.await {
            Ok(sink) => sink,
            Err(error) => panic!("{error}: {:#}", self.router.request(&["status"]).unwrap()["sinks"]),
        }
    }

    /// Waits for so many `delivered` records of a sink.
    pub(crate) async fn delivered(&self, sink: &str, count: usize) -> Vec<Value> {
        let what = format!("{count} deliveries of {sink} in the audit");
        until(&what, PATIENCE, async || {
            let of = |it: &Value| it["record"] == "delivered" && it["sink"] == sink;
            let found: Vec<_> = self.router.audit()?.into_iter().filter(of).collect();
            Ok((found.len() >= count).then_some(found))
        })
        .await
        .unwrap()
    }
}

fn exited(init: bool) -> Event {
    Event::Exited(Exited { pid: Some(7), is_init: Some(init), status: Some(3), ..Exited::default() })
}

/// The execs or containers that documents report on, in order.
pub(crate) fn subjects<'a>(documents: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    let of = |it: &Value| {
        let target = &it["signal"]["target"];
        target["exec-id"].as_str().or(target["container-id"].as_str()).unwrap().to_owned()
    };
    documents.into_iter().map(of).collect()
}

/// The names that [`Fixture::exits`] gives.
pub(crate) fn named(name: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|at| format!("{name}-{at}")).collect()
}

/// The whole lines of a file.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
