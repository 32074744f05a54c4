//! The path through the router, with peers that misbehave: nothing is lost, nothing overtakes, no
//! container is held up.

mod fakes;
mod invariants;
mod peers;
mod running;
mod shim;
mod shims;

use std::path::Path;

use coroner::node::Assembly;
use coroner::node::config::Config;
use coroner_proto::agent::{self, Signal, signal::Event};
use running::{Places, Running};

impl Running {
    fn start(places: Places, config: &Config) -> Self {
        Self::of(places, config, Assembly::start(config).expect("the engine runs on this machine"))
    }

    /// Lets the router run dry, and gives its audit records.
    async fn stop(self) -> Vec<serde_json::Value> {
        records(&self.end().await.path("audit.jsonl"))
    }
}

fn records(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("each line is a record")).collect()
}

/// The records of rulings.
fn ruled(records: &[serde_json::Value]) -> Vec<&serde_json::Value> {
    records.iter().filter(|it| it["record"] == "ruled").collect()
}

fn agent_signal(seq: u64, container: &str, event: Option<Event>) -> Signal {
    Signal { seq, container_id: container.to_owned(), boot_ns: seq, wall_ms: seq, event, ..Signal::default() }
}

fn kill(seq: u64, container: &str, total: u64) -> Signal {
    let kill = agent::OomKill { total, added: 1, ..agent::OomKill::default() };
    agent_signal(seq, container, Some(Event::OomKill(kill)))
}

fn exit(seq: u64, container: &str, status: u32) -> Signal {
    let exited =
        agent::Exited { pid: Some(7), is_init: Some(true), status: Some(status), ..agent::Exited::default() };
    agent_signal(seq, container, Some(Event::Exited(exited)))
}
