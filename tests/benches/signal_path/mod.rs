//! The path of a signal through a router in this process, from an agent's socket to containerd's:
//! what benchmarks send along it, and how long that takes.

#[path = "../../tests/routing/fakes.rs"]
mod fakes;
#[path = "../../tests/routing/running.rs"]
pub(crate) mod running;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coroner::node::Assembly;
use coroner_policy::{ActiveChain, Host, Policy};
use coroner_proto::agent::{Exited, OomKill, Signal, Victim, signal::Event};
use fakes::{FakeAgent, FakeContainerd, serve};
use protobuf::MessageField;
use running::{Places, Running};
use tokio::runtime::Runtime;
use ttrpc::asynchronous::Server;

/// Kills of one run.
pub(crate) const RUN: u32 = 100;
/// Exits of one burst.
pub(crate) const EXITS: u32 = 5_000;

/// A router between an agent and a containerd of its own.
pub(crate) struct SignalPath {
    agent: Arc<FakeAgent>,
    router: Running,
    events: fakes::Took,
    servers: [Server; 2],
    seq: u64,
}

impl SignalPath {
    pub(crate) async fn start(
        routers: &Runtime,
        host: &Arc<Host>,
        policies: &[Arc<Policy>],
        mode: &str,
        journal: bool,
    ) -> Self {
        let places = Places::new();
        let mut config = places.config(mode);
        if !journal {
            config.journal = None;
        }
        // No CRI to query for names: each second's first signal would pay for finding that out.
        config.containerd.as_mut().expect("the configuration has one").address = None;
        let agent = Arc::new(FakeAgent::default());
        let (containerd, events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
        let servers = [serve(&agent, &places.path("agent.sock")).await, containerd];
        let _inside = routers.enter();
        let router = Assembly::with_chain(&config, host, &ActiveChain::fixed(policies.to_vec()));
        let router = router.expect("the journal's folder is this route's own");
        Self { agent, router: Running::of(places, &config, router), events, servers, seq: 0 }
    }

    /// The latency of one kill; waits until the router is idle again.
    pub(crate) async fn kill(&mut self) -> Duration {
        let took = self.pass().await;
        self.quiet().await;
        took
    }

    /// From the moment the agent emits one kill to the moment containerd has it.
    async fn pass(&mut self) -> Duration {
        let signal = self.next(kill());
        let begun = Instant::now();
        self.agent.emit(signal);
        self.events.recv().await.expect("served until the end");
        begun.elapsed()
    }

    /// The latency of a run of kills, each emitted as containerd has the one before.
    pub(crate) async fn run(&mut self) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..RUN {
            took += self.pass().await;
        }
        self.quiet().await;
        took
    }

    /// From the moment the agent emits many exits to the moment containerd has the last.
    pub(crate) async fn exits(&mut self) -> Duration {
        let signals: Vec<Signal> = (0..EXITS).map(|_| self.next(exit())).collect();
        let begun = Instant::now();
        *self.agent.signals.lock().expect("nothing panics under this lock") = signals;
        self.agent.changed.notify_waiters();
        for _ in 0..EXITS {
            self.events.recv().await.expect("served until the end");
        }
        let took = begun.elapsed();
        self.quiet().await;
        took
    }

    fn next(&mut self, event: Event) -> Signal {
        self.seq += 1;
        Signal {
            seq: self.seq,
            container_id: format!("{:064x}", self.seq),
            boot_ns: self.seq,
            wall_ms: self.seq,
            event: Some(event),
            ..Signal::default()
        }
    }

    /// Waits until the router has acknowledged all that was emitted, which is the last it does.
    async fn quiet(&self) {
        self.agent.read(self.seq).await;
        self.agent.acked(self.seq).await;
        self.agent.signals.lock().expect("nothing panics under this lock").clear();
    }

    pub(crate) async fn end(self) {
        self.router.end().await;
        for mut server in self.servers {
            server.shutdown().await.expect("it serves");
        }
    }
}

fn kill() -> Event {
    Event::OomKill(OomKill {
        total: 1,
        added: 1,
        group: Some(false),
        cgroup: "/kubepods/burstable/pod5d2f4f0e-6c0b-4a53-9a55-3f0f5f1f3c11/shop".to_owned(),
        limit_bytes: Some(128 << 20),
        usage_bytes: Some(128 << 20),
        victim: MessageField::some(Victim {
            pid: 4711,
            comm: "java".to_owned(),
            is_init: Some(true),
            ..Victim::default()
        }),
        ..OomKill::default()
    })
}

fn exit() -> Event {
    Event::Exited(Exited {
        pid: Some(4711),
        is_init: Some(true),
        status: Some(137),
        signal: Some(9),
        core: Some(false),
        ..Exited::default()
    })
}
