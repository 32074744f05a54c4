//! What the cases share: one containerd at a time, and a router and an agent beside it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use coroner_tests::agent::Agent;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Container, Pod};
use coroner_tests::router::{Router, usual};
use coroner_tests::wait::until;
use rustix::process::Pid;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// A container's end comes within a second; this allows for a machine that builds Rust beside.
pub(crate) const END: Duration = Duration::from_secs(30);

/// The source's name in audit records.
const SOURCE: &str = "node";
/// The node's name in signals.
pub(crate) const NODE: &str = "test-node";

/// Cases measure races of milliseconds: they take turns, also without `--test-threads=1`.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// An agent on containerd's pods, and a router that publishes to it.
#[derive(Debug)]
pub(crate) struct Coroner {
    pub(crate) agent: Agent,
    pub(crate) router: Router,
}

impl Coroner {
    pub(crate) async fn start(containerd: &Containerd) -> Result<Self> {
        let agent = Agent::start(containerd.cgroup()).await?;
        let router = Router::start(&config(containerd, &agent)).await?;
        Ok(Self { agent, router })
    }

    pub(crate) async fn start_again(&mut self) -> Result<()> {
        self.agent.start_again().await?;
        self.router.start_again().await
    }

    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.router.stop().await?;
        self.agent.stop().await
    }

    /// Waits until a signal of this kind was ruled for the container, and returns its audit record.
    pub(crate) async fn ruled(&self, kind: &str, container: &Container) -> Result<Value> {
        let what = format!("the audit record of {kind} of {}", container.name);
        self.router.wait_record(&what, END, |record| is_ruled(record, kind, &container.id)).await
    }

    /// Waits until what was queued for `topic` by that ruling has left, and returns the `delivered`
    /// record.
    pub(crate) async fn delivered(&self, ruled: &Value, topic: &str) -> Result<Value> {
        let id = ruled["signal"]["id"].as_str().context("a ruled record has a signal id")?;
        let what = format!("the delivery of {topic} for {id}");
        self.router
            .wait_record(&what, END, |record| {
                record["record"] == "delivered"
                    && record["id"] == id
                    && record["sink"] == "containerd"
                    && record["topic"] == topic
            })
            .await
    }
}

impl Coroner {
    /// The record of the chain of this generation.
    pub(crate) async fn swapped(&self, generation: u64) -> Result<Value> {
        let what = format!("generation {generation}");
        self.router
            .wait_record(&what, END, |record| {
                record["record"] == "chain" && record["generation"] == generation
            })
            .await
    }
}

/// Whether a record is the ruling on a signal of `kind` about a container's init process.
pub(crate) fn is_ruled(record: &Value, kind: &str, container: &str) -> bool {
    let signal = &record["signal"];
    record["record"] == "ruled"
        && record["source"] == SOURCE
        && signal["target"]["container-id"] == container
        && signal["target"]["exec-id"].is_null()
        && !signal["event"][kind].is_null()
}

pub(crate) fn config(containerd: &Containerd, agent: &Agent) -> String {
    format!(
        r#"{usual}
[[source]]
name = "{SOURCE}"
type = "agent"
address = "{agent}"
mode = "beside"
"#,
        usual = usual(NODE, &containerd.socket()),
        agent = agent.address(),
    )
}

/// The memory controller's hierarchy: of cgroup v1, or all of v2.
pub(crate) const ROOTS: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];

pub(crate) async fn first_process(pod: &Pod, container: &Container) -> Result<Pid> {
    let below = format!("{}/{}/cgroup.procs", pod.cgroup(), container.id);
    let read = async || {
        let text =
            ROOTS.map(Path::new).iter().find_map(|root| std::fs::read_to_string(root.join(&below)).ok());
        let first = text.as_deref().and_then(|text| text.lines().next()?.parse().ok());
        Ok(first.and_then(Pid::from_raw))
    };
    until("the container's first process", END, read).await
}
