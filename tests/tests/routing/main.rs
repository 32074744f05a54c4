//! The way through the router, with peers that misbehave: nothing is lost, nothing overtakes, nobody is held up.

mod fakes;
mod invariants;
mod peers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coroner::config::Config;
use coroner::source::agent::AgentSource;
use coroner::{Router, RunError};
use coroner_proto::agent::{self, Signal, signal::Event};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A router in this process, its sockets and its audit file in a folder of their own.
struct Running {
    places: Places,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

/// Sockets and files of a test.
#[derive(Clone)]
struct Places {
    folder: Arc<tempfile::TempDir>,
}

impl Places {
    fn new() -> Self {
        Self { folder: Arc::new(tempfile::tempdir().unwrap()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One agent source `agent.sock` in this mode, the sink `containerd`, and the audit file.
    fn config(&self, mode: &str) -> Config {
        let at = |name| self.path(name).display().to_string();
        let text = format!(
            r#"
            node = "n"
            [containerd]
            address = "{}"
            ttrpc_address = "{}"
            [[source]]
            name = "agent"
            type = "agent"
            address = "unix://{}"
            mode = "{mode}"
            [[sink]]
            name = "containerd"
            type = "containerd"
            [[sink]]
            name = "audit"
            type = "jsonl"
            path = "{}"
            "#,
            at("no-such.sock"),
            at("containerd.sock"),
            at("agent.sock"),
            at("audit.jsonl"),
        );
        Config::parse(&text).unwrap()
    }
}

impl Running {
    fn start(places: Places, config: &Config) -> Self {
        let mut router = Router::start(config).unwrap();
        for source in &config.sources {
            let agent = AgentSource::new(source.clone(), config.node.clone(), router.arrivals());
            router.add(source.name.clone(), agent.run(router.stopped()));
        }
        let (stop, over) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "joined in `stop`")]
        let ended = tokio::spawn(router.until(async {
            over.await.ok();
        }));
        Self { places, stop, ended }
    }

    /// Lets the router run dry, and gives its audit records.
    async fn stop(self) -> Vec<serde_json::Value> {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
        records(&self.places.path("audit.jsonl"))
    }
}

fn records(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records that tell a ruling.
fn ruled(records: &[serde_json::Value]) -> Vec<&serde_json::Value> {
    records.iter().filter(|it| it["record"] == "ruled").collect()
}

fn told(seq: u64, container: &str, event: Option<Event>) -> Signal {
    Signal { seq, container_id: container.to_owned(), boot_ns: seq, wall_ms: seq, event, ..Signal::default() }
}

fn kill(seq: u64, container: &str, total: u64) -> Signal {
    let kill = agent::OomKill { total, added: 1, ..agent::OomKill::default() };
    told(seq, container, Some(Event::OomKill(kill)))
}

fn exit(seq: u64, container: &str, status: u32) -> Signal {
    let exited =
        agent::Exited { pid: Some(7), is_init: Some(true), status: Some(status), ..agent::Exited::default() };
    told(seq, container, Some(Event::Exited(exited)))
}
