//! The real `coroner run` while its policies change, fail and burn: nothing is lost, and its memory
//! stays where it was.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

#[expect(dead_code, reason = "shared with another suite, which uses the rest")]
#[path = "../../../tests/routing/fakes.rs"]
mod fakes;
mod memory;
mod operator;
mod reload;
mod spinner;
mod swap;

use std::sync::Arc;

use coroner_proto::agent::{Exited, OomKill, Signal, signal::Event};
use coroner_tests::router::{Router, usual_played};
use coroner_tests::scratch::Scratch;
use fakes::{FakeAgent, FakeContainerd, Took, serve};
use ttrpc::asynchronous::Server;

/// A router between a fake agent and a fake containerd.
struct Fixture {
    router: Router,
    agent: Arc<FakeAgent>,
    took: Took,
    _servers: [Server; 2],
    seq: u64,
}

impl Fixture {
    /// `policies` is the content of `[policies]` beside the directory and the cache.
    async fn start(mode: &str, policies: &str) -> Self {
        let scratch = Scratch::new().unwrap();
        let agent = Arc::new(FakeAgent::default());
        let served = serve(&agent, &scratch.path("agent.sock")).await;
        let (containerd, took) = FakeContainerd::serve(&scratch.path("containerd.sock"), 0).await;
        let usual = usual_played("n").replace("[policies]", &format!("[policies]\n{policies}"));
        let more = format!(
            r#"
            [metrics]
            address = "unix://@DIR@/metrics.sock"
            [[source]]
            name = "node"
            type = "agent"
            address = "unix://@DIR@/agent.sock"
            mode = "{mode}"
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
            wall_ms: self.seq,
            event: Some(event),
            ..Signal::default()
        });
    }

    fn kill(&mut self, container: &str, total: u64) {
        self.emit(container, None, Event::OomKill(OomKill { total, added: 1, ..OomKill::default() }));
    }

    /// The exit of a container's init by SIGKILL.
    fn killed(&mut self, container: &str) {
        let exited = Exited {
            pid: Some(7),
            is_init: Some(true),
            status: Some(137),
            signal: Some(9),
            ..Exited::default()
        };
        self.emit(container, None, Event::Exited(exited));
    }

    /// Waits until all that was emitted is dealt with.
    async fn dealt_with(&self) {
        self.agent.acked(self.seq).await;
        self.router.wait_delivered(self.seq).await.unwrap();
    }
}

/// The bundled example policy, and what makes it rule where kill requests are not seen.
fn sigkill_is_oom() -> Vec<u8> {
    std::fs::read(coroner_tests::binary::bundled_policy("sigkill-is-oom").unwrap()).unwrap()
}

const ASSUME: &str = "[config]\nassume_no_kill_requests = true\n";
