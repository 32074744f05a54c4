//! A router between a good guest and bad ones: what the good one's signals take with and without
//! them, and what the router takes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coroner_proto::agent::{OomKill, signal::Event};
use coroner_tests::report::print;
use coroner_tests::router::{Memory, Router, usual_played};
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use serde_json::Value;
use ttrpc::asynchronous::Server;

use super::agent_signal;
use super::fakes::{FakeAgent, serve};
use super::link::{Bad, Link};
use super::published::Published;

/// Containers of the good guest.
const CONTAINERS: u64 = 8;
/// Between two of its signals.
const GAP: Duration = Duration::from_millis(4);
/// How long it is measured alone.
const QUIET: Duration = Duration::from_secs(1);
/// KiB that all bad guests of a case together may have the router take: a frame of 64 KiB, decoded,
/// is some ten MiB for a moment.
const MEMORY: u64 = 24 << 10;
/// Lines each of them may have it log.
const LINES: usize = 25;

pub(crate) struct Fixture {
    case: &'static str,
    pub(crate) router: Router,
    pub(crate) published: Published,
    good: Arc<FakeAgent>,
    _server: Server,
    seq: u64,
    quiet: Vec<Duration>,
    before: Memory,
    bad: usize,
}

impl Fixture {
    /// Starts them, and measures the good guest alone. `more` is further configuration.
    pub(crate) async fn start(case: &'static str, more: &str) -> Self {
        let scratch = Scratch::new().unwrap();
        let good = Arc::new(FakeAgent::default());
        let server = serve(&good, &scratch.path("good.sock")).await;
        let published = Published::serve(&scratch.path("containerd.sock")).await;
        let toml = format!(
            r#"
            [guests]
            directory = "@DIR@/guests.d"
            [[guest]]
            name = "good"
            type = "agent"
            address = "unix://@DIR@/good.sock"
            mode = "sole"
            {more}
            "#
        );
        let router = Router::start_in(scratch, &(usual_played("n") + &toml)).await.unwrap();
        let before = router.memory().unwrap();
        let quiet = Vec::new();
        let mut fixture =
            Self { case, router, published, good, _server: server, seq: 0, quiet, before, bad: 0 };
        // Its containers become known, and the policies' instances are made.
        fixture.measure(Duration::from_millis(200)).await;
        fixture.quiet = fixture.measure(QUIET).await;
        fixture.before = fixture.router.memory().unwrap();
        fixture
    }

    /// Has the router follow one more guest.
    pub(crate) fn bad<S, D>(&mut self, name: &str, script: S) -> Bad
    where
        S: Fn(Link) -> D + Send + 'static,
        D: Future<Output = io::Result<()>> + Send + 'static,
    {
        let socket = self.router.path(&format!("{name}.sock"));
        let bad = Bad::serve(&socket, script);
        self.follow(name);
        bad
    }

    /// Has the router follow the guest that answers on `NAME.sock`.
    pub(crate) fn follow(&mut self, name: &str) {
        let socket = self.router.path(&format!("{name}.sock"));
        let address = format!("unix://{}", socket.display());
        let add = ["guest", "add", name, "--address", &address, "--mode", "sole"];
        let added = self.router.command(&add).unwrap();
        assert!(added.status.success(), "{added:?}");
        self.bad += 1;
    }

    /// The router's record of a guest.
    pub(crate) fn guest(&self, name: &str) -> Value {
        let all = self.router.request(&["guest", "list"]).unwrap();
        all["guests"].as_array().unwrap().iter().find(|it| it["guest"] == name).unwrap().clone()
    }

    /// Waits until the router's record of a guest is as `wanted`.
    pub(crate) async fn wait_guest(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let query = async || Ok(Some(self.guest(name)).filter(&wanted));
        until(what, Duration::from_secs(30), query)
            .await
            .unwrap_or_else(|error| panic!("{error}: {:#}", self.guest(name)))
    }

    /// Measures the good guest for so long beside the bad ones, then checks what all cases have in
    /// common: the router lives, is small, and has logged little; the good guest's link is the one
    /// it had, and each of its signals came.
    pub(crate) async fn beside(&mut self, lasts: Duration) {
        let cpu = self.router.cpu().unwrap();
        let begun = Instant::now();
        let mut loud = self.measure(lasts).await;
        let cpu = (self.router.cpu().unwrap() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
        let memory = self.router.memory().unwrap();
        let lines = self.router.logged("").unwrap();
        print(format_args!(
            "{}: the good guest's kills p50 {}, p99 {} (quiet {}, {}); router {} KiB anonymous (quiet {}), {:.0} % of a core, {lines} lines of log",
            self.case,
            at(&mut loud, 50),
            at(&mut loud, 99),
            at(&mut self.quiet, 50),
            at(&mut self.quiet, 99),
            memory.anonymous,
            self.before.anonymous,
            cpu * 100.0,
        ));
        assert!(memory.anonymous <= self.before.anonymous + MEMORY, "{memory:?} {:?}", self.before);
        assert!(lines <= 10 + LINES * self.bad, "{lines} lines of log");
        assert_eq!(self.router.logged("panicked").unwrap(), 0);
        let good = self.guest("good");
        assert_eq!((&good["links"], &good["state"]), (&1.into(), &"up".into()), "{good:#}");
        assert_eq!((&good["refused"], &good["problem"]), (&0.into(), &Value::Null), "{good:#}");
        assert_eq!(self.good.hellos.load(Ordering::SeqCst), 1);
    }

    /// One kill after the other, each waited for at containerd.
    async fn measure(&mut self, lasts: Duration) -> Vec<Duration> {
        let (begun, mut took) = (Instant::now(), Vec::new());
        let mut pace = tokio::time::interval(GAP);
        while begun.elapsed() < lasts {
            pace.tick().await;
            let container = format!("good-{}", self.seq % CONTAINERS);
            let total = self.seq / CONTAINERS + 1;
            self.seq += 1;
            let kill = OomKill { total, added: 1, ..OomKill::default() };
            let emitted_at = Instant::now();
            self.good.emit(agent_signal(self.seq, &container, Event::OomKill(kill)));
            self.published.wait(&container, |it| it.ooms >= total).await;
            took.push(emitted_at.elapsed());
        }
        took
    }
}

fn at(took: &mut [Duration], percent: usize) -> String {
    took.sort_unstable();
    format!("{:.1} ms", took[(took.len() - 1) * percent / 100].as_secs_f64() * 1000.0)
}
