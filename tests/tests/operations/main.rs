//! Running the router as an operator does: as a service, watched while it runs, and queried
//! afterwards about what became of a container.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod admin;
mod explain;
#[expect(dead_code, reason = "shared with another suite, which uses the rest")]
#[path = "../routing/fakes.rs"]
mod fakes;
mod page;
mod service;
mod tap;
mod units;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use coroner_proto::agent::{Exited, OomKill, Signal, signal::Event};
use coroner_tests::router::{Router, usual_played};
use coroner_tests::scratch::Scratch;
use fakes::{FakeAgent, FakeContainerd, serve};
use ttrpc::asynchronous::Server;

/// A router in mode `sole` between a fake agent and a fake containerd.
struct Fixture {
    router: Router,
    agent: Arc<FakeAgent>,
    _servers: [Server; 2],
    seq: u64,
}

impl Fixture {
    async fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        let agent = Arc::new(FakeAgent::default());
        let served = serve(&agent, &scratch.path("agent.sock")).await;
        let (containerd, _took) = FakeContainerd::serve(&scratch.path("containerd.sock"), 0).await;
        let toml = r#"
            [[source]]
            name = "node"
            type = "agent"
            address = "unix://@DIR@/agent.sock"
            mode = "sole"
        "#;
        let router = Router::start_in(scratch, &(usual_played("n") + toml)).await.unwrap();
        Self { router, agent, _servers: [served, containerd], seq: 0 }
    }

    fn emit(&mut self, container: &str, event: Event) {
        self.seq += 1;
        self.agent.emit(Signal {
            seq: self.seq,
            container_id: container.to_owned(),
            boot_ns: self.seq * 1_000_000,
            wall_ms: now_ms(),
            event: Some(event),
            ..Signal::default()
        });
    }

    fn kill(&mut self, container: &str, total: u64) {
        self.emit(container, Event::OomKill(OomKill { total, added: 1, ..OomKill::default() }));
    }

    fn exit(&mut self, container: &str, status: u32) {
        let exited = Exited { pid: Some(7), is_init: Some(true), status: Some(status), ..Exited::default() };
        self.emit(container, Event::Exited(exited));
    }

    /// Waits until all that was emitted is dealt with.
    async fn dealt_with(&self) {
        self.agent.acked(self.seq).await;
        self.router.wait_delivered(self.seq).await.unwrap();
    }

    /// Waits until the audit file holds so many deliveries to this topic.
    async fn written(&self, topic: &str, deliveries: usize) {
        let patience = std::time::Duration::from_secs(30);
        let count = async || {
            let all = self.router.audit()?;
            Ok((all.iter().filter(|it| it["record"] == "delivered" && it["topic"] == topic).count()
                >= deliveries)
                .then_some(()))
        };
        coroner_tests::wait::until("the audit to be written", patience, count).await.unwrap();
    }
}

/// Unix milliseconds.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
