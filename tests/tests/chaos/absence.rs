//! The router is away for a while, in three ways, while containers die.

use std::time::Duration;

use coroner_tests::agent::Agent;
use coroner_tests::report::{print, timed};
use coroner_tests::router::Router;
use coroner_tests::wait::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::bare::Root;

const END: Duration = Duration::from_secs(60);
/// Containers that die in each absence: killed by the kernel, and not.
const DEATHS: [(&str, u32, bool); 4] =
    [("self 64", 137, true), ("child 64 1 0", 1, true), ("exit 0", 0, false), ("exit 3", 3, false)];

struct Stage {
    root: Root,
    agent: Agent,
    router: Router,
}

impl Stage {
    async fn start() -> Self {
        let root = Root::new().unwrap();
        let agent = Agent::start(root.name()).await.unwrap();
        let toml = format!(
            r#"
            node = "absent"
            [control]
            socket = "@DIR@/control.sock"
            [[source]]
            name = "bare"
            type = "agent"
            address = "{}"
            mode = "sole"
            [[sink]]
            name = "audit"
            type = "jsonl"
            path = "@DIR@/audit.jsonl"
            "#,
            agent.address()
        );
        Self { root, agent, router: Router::start(&toml).await.unwrap() }
    }

    /// Containers that die `after` so many milliseconds, and that the router knows to live.
    async fn begin(&self, name: &str, after: u64) -> Vec<std::process::Child> {
        let run = |(action, ..): &(&str, u32, bool)| {
            let id = format!("{name}-{}", action.replace(' ', "-"));
            self.root.run(&id, &format!("delay {after} {action}")).unwrap()
        };
        let children = DEATHS.iter().map(run).collect();
        let journal = self.router.path("journal");
        until("the journal to know the containers", END, async || {
            let (entries, _) = coroner_journal::read(&journal)?;
            let lives = entries.iter().filter(
                |it| matches!(it, coroner_journal::JournalRecord::Running(lives) if lives.container.as_str().starts_with(name)),
            );
            Ok((lives.count() >= DEATHS.len()).then_some(()))
        })
        .await
        .unwrap();
        children
    }

    /// Containers end, and their cgroups go, while the agent is away, and the router too or not:
    /// each end is reported once, and marked.
    async fn forgotten(&mut self, name: &str, router_too: bool) {
        let ids = DEATHS.map(|(action, ..)| format!("{name}-{}", action.replace(' ', "-")));
        let _children = self.begin(name, 1000).await;
        if router_too {
            self.router.kill().unwrap();
        }
        self.agent.stop().await.unwrap();
        until("the containers to be gone", END, async || {
            Ok(ids.iter().all(|id| self.root.remove(id) || !self.root.is_there(id)).then_some(()))
        })
        .await
        .unwrap();
        self.agent.start_again().await.unwrap();
        if router_too {
            self.router.start_again().await.unwrap();
        }
        for id in &ids {
            let ended = |it: &Value| {
                it["signal"]["target"]["container-id"] == id.as_str()
                    && it["signal"]["event"]["exited"]["reconciled"] == true
            };
            let exit = self.router.wait_record(id, END, ended).await.unwrap();
            assert!(exit["signal"]["event"]["exited"]["status"].is_null(), "unknown is not zero: {exit}");
            assert_eq!(exit["actions"][0]["task-exit"], Value::Null, "{exit}");
            assert_eq!(self.router.audit().unwrap().iter().filter(|it| ended(it)).count(), 1, "{id}: once");
        }
    }

    /// Checks every kill and exit, each kill first. Returns how many of the exits are marked.
    async fn check(&self, name: &str) -> usize {
        let mut marked = 0;
        for (action, status, killed) in DEATHS {
            let id = format!("{name}-{}", action.replace(' ', "-"));
            let of = |record: &Value, kind: &str| {
                record["signal"]["target"]["container-id"] == id.as_str()
                    && !record["signal"]["event"][kind].is_null()
            };
            let exit = self.router.wait_record(&id, END, |it| of(it, "exited")).await.unwrap();
            assert_eq!(exit["signal"]["event"]["exited"]["status"], status, "{exit}");
            let audit = self.router.audit().unwrap();
            let place = |kind: &str| audit.iter().position(|it| of(it, kind));
            assert_eq!(place("oom-kill").is_some(), killed, "{id}");
            assert!(place("oom-kill") < place("exited"), "{id}: the kill first");
            assert_eq!(audit.iter().filter(|it| of(it, "exited")).count(), 1, "{id}: once");
            marked += usize::from(exit["signal"]["event"]["exited"]["reconciled"] == true);
        }
        marked
    }
}

#[tokio::test]
async fn deaths_during_router_absence_are_reported_and_marked() {
    let _timed = timed("deaths_during_router_absence_are_reported_and_marked");
    let mut stage = Stage::start().await;

    let _children = stage.begin("stopped", 1000).await;
    stage.router.stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    stage.router.start_again().await.unwrap();
    print(format_args!("stopped for 10 s: {} of {} marked", stage.check("stopped").await, DEATHS.len()));

    let _children = stage.begin("hung", 1000).await;
    stage.router.signal(Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    stage.router.signal(Signal::CONT).unwrap();
    assert_eq!(stage.check("hung").await, 0, "the same router watched before and after");

    let _children = stage.begin("absent", 1000).await;
    stage.router.kill().unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    stage.router.start_again().await.unwrap();
    assert_eq!(stage.check("absent").await, DEATHS.len(), "each came before this router began");

    // The agent is started anew as well, and then alone: how these ended cannot be known.
    stage.forgotten("forgotten", true).await;
    stage.forgotten("agentless", false).await;
    stage.router.stop().await.unwrap();
}
