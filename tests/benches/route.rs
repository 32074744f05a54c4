//! What a signal's way through the router takes, socket to socket: with the bundled policy, and with none.

#[path = "../tests/routing/fakes.rs"]
mod fakes;
mod paired;
#[path = "../tests/routing/running.rs"]
mod running;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coroner::Router;
use coroner::policy::{Host, Keeper, Lineups, Policy};
use coroner_proto::agent::{Exited, OomKill, Signal, Victim, signal::Event};
use fakes::{FakeAgent, FakeContainerd, serve};
use paired::Pairs;
use protobuf::MessageField;
use running::{Places, Running};
use tokio::runtime::Runtime;
use ttrpc::asynchronous::Server;

/// Pairs of single kills. A kill takes as long as a core takes to wake, and that varies.
const KILLS: u64 = 401;
/// Pairs of runs, and kills of one.
const RUNS: u64 = 61;
const RUN: u32 = 100;
/// Pairs of bursts, and exits of one: some 300,000 each way, in bursts short enough that both of a pair meet the same
/// machine.
const BURSTS: u64 = 61;
const EXITS: u32 = 5_000;
/// Pairs before anything is measured: connections are made, and policies started.
const WARM_UP: u64 = 20;

fn main() {
    // As `coroner run` has it. The peers have the main thread to themselves, as processes of their own would.
    let routers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let routers = routers.expect("a runtime can be made");
    let peers = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let peers = peers.expect("a runtime can be made");
    let settings = Places::new().config("beside").policies;
    let host = Arc::new(Host::new(settings).expect("the engine runs on this machine"));
    let keeper = Keeper::start(Arc::clone(&host));
    assert_eq!(keeper.refused(), []);
    let policies = &keeper.lineups().now().policies;
    let comparisons = peers.block_on(async {
        let (mut native, mut wasm) = pair(&routers, &host, policies, "beside").await;
        let single = single(&mut native, &mut wasm).await;
        let run = run(&mut native, &mut wasm).await;
        native.end().await;
        wasm.end().await;
        let (mut native, mut wasm) = pair(&routers, &host, policies, "sole").await;
        let burst = burst(&mut native, &mut wasm).await;
        native.end().await;
        wasm.end().await;
        [single, run, burst]
    });
    paired::print(
        "agent's socket to containerd's, with 00-kubernetes in wasm against native, alternating",
        &comparisons,
    );
}

async fn pair(routers: &Runtime, host: &Arc<Host>, policies: &[Arc<Policy>], mode: &str) -> (Route, Route) {
    (Route::start(routers, host, &[], mode).await, Route::start(routers, host, policies, mode).await)
}

/// Single kills, each told when all is quiet after the one before.
async fn single(native: &mut Route, wasm: &mut Route) -> Pairs {
    for _ in 0..WARM_UP {
        native.kill().await;
        wasm.kill().await;
    }
    let mut pairs = Pairs::new("a kill after quiet", "no policies");
    for _ in 0..KILLS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.kill().await;
            (native, wasm.kill().await)
        } else {
            let wasm = wasm.kill().await;
            (native.kill().await, wasm)
        };
        pairs.add(native, wasm, 1);
    }
    pairs
}

/// Kills one at a time, each told as soon as containerd has the one before.
async fn run(native: &mut Route, wasm: &mut Route) -> Pairs {
    let mut pairs = Pairs::new("a kill right after another", "no policies");
    for _ in 0..RUNS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.run().await;
            (native, wasm.run().await)
        } else {
            let wasm = wasm.run().await;
            (native.run().await, wasm)
        };
        pairs.add(native, wasm, RUN);
    }
    pairs
}

/// Exits as fast as they are taken.
async fn burst(native: &mut Route, wasm: &mut Route) -> Pairs {
    native.exits().await;
    wasm.exits().await;
    let mut pairs = Pairs::new(format!("each of {EXITS} exits at once"), "no policies");
    for _ in 0..BURSTS {
        let (native, wasm) = if pairs.baseline_first() {
            let native = native.exits().await;
            (native, wasm.exits().await)
        } else {
            let wasm = wasm.exits().await;
            (native.exits().await, wasm)
        };
        pairs.add(native, wasm, EXITS);
    }
    pairs
}

/// A router between an agent and a containerd of its own.
struct Route {
    agent: Arc<FakeAgent>,
    router: Running,
    events: fakes::Took,
    servers: [Server; 2],
    seq: u64,
}

impl Route {
    async fn start(routers: &Runtime, host: &Arc<Host>, policies: &[Arc<Policy>], mode: &str) -> Self {
        let places = Places::new();
        let mut config = places.config(mode);
        // Nobody to ask for names: each second's first signal would pay for finding that out.
        config.containerd.as_mut().expect("the configuration has one").address = None;
        let agent = Arc::new(FakeAgent::default());
        let (containerd, events) = FakeContainerd::serve(&places.path("containerd.sock"), 0).await;
        let servers = [serve(&agent, &places.path("agent.sock")).await, containerd];
        let _inside = routers.enter();
        let router = Router::with_lineups(&config, host, &Lineups::fixed(policies.to_vec()));
        let router = router.expect("the journal's folder is this route's own");
        Self { agent, router: Running::of(places, &config, router), events, servers, seq: 0 }
    }

    /// One kill's way, and then quiet.
    async fn kill(&mut self) -> Duration {
        let took = self.pass().await;
        self.quiet().await;
        took
    }

    /// From the moment the agent tells one kill to the moment containerd has it.
    async fn pass(&mut self) -> Duration {
        let signal = self.next(kill());
        let begun = Instant::now();
        self.agent.tell(signal);
        self.events.recv().await.expect("served until the end");
        begun.elapsed()
    }

    /// All the ways of some kills, one begun as the one before ends.
    async fn run(&mut self) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..RUN {
            took += self.pass().await;
        }
        self.quiet().await;
        took
    }

    /// From the moment the agent tells many exits to the moment containerd has the last.
    async fn exits(&mut self) -> Duration {
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

    /// Waits until the router has acknowledged what it was told, which is the last it does.
    async fn quiet(&self) {
        self.agent.read(self.seq).await;
        self.agent.acked(self.seq).await;
        self.agent.signals.lock().expect("nothing panics under this lock").clear();
    }

    async fn end(self) {
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
