//! The source `kata` among peers that refuse, hang, flood and lie: one line of log for each outage,
//! an idle processor, and a good peer beside them that is read as before.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod fakes;
#[path = "../routing/fakes.rs"]
#[expect(dead_code, reason = "of the fakes of the routing suite, this one needs containerd alone")]
mod routing;

use std::sync::Arc;
use std::time::Duration;

use coroner_tests::report::{print, timed};
use coroner_tests::router::{Router, usual_played};
use coroner_tests::scratch::Scratch;
use serde_json::Value;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use ttrpc::Code;
use ttrpc::asynchronous::Server;

use fakes::{Answer, FakeKata, mute, serve};
use routing::{Event, FakeContainerd, Took};

/// Kills that the good peer announces, and the pause after each: ten seconds in all.
const KILLS: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// The processor time that the router may take in these ten seconds. Six hundred kills of a flood
/// are worth twice as much.
const BUSY: Duration = Duration::from_millis(500);

/// A router with some peers, and one good one.
struct Case {
    router: Router,
    events: Took,
    kills: mpsc::Sender<String>,
    _servers: Vec<Server>,
}

impl Case {
    /// `others`: names of the other sources; their sockets are in `scratch` already.
    async fn start(scratch: Scratch, others: &[&str]) -> Self {
        let (containerd, events) = FakeContainerd::serve(&scratch.path("containerd.sock"), 0).await;
        let (kills, announced) = mpsc::channel(KILLS);
        let good = FakeKata::new(Answer::Kills(Mutex::new(announced)));
        let servers = vec![serve(&good, &scratch.path("good.sock")).await, containerd];
        let sources: String = others.iter().chain(&["good"]).map(|name| source(name)).collect();
        let router = Router::start_in(scratch, &(usual_played("n") + &sources)).await.unwrap();
        Self { router, events, kills, _servers: servers }
    }

    /// The good peer announces its kills. Returns the processor time of the router meanwhile, and
    /// what came beside them.
    async fn run(&mut self) -> (Duration, Vec<Event>) {
        let before = self.router.cpu().unwrap();
        let (mut pause, mut others) = (tokio::time::interval(PAUSE), Vec::new());
        for at in 0..KILLS {
            pause.tick().await;
            let id = format!("good-{at}");
            self.kills.send(id.clone()).await.unwrap();
            loop {
                match self.events.recv().await.unwrap() {
                    Event::Oom { container, .. } if container == id => break,
                    event => others.push(event),
                }
            }
        }
        pause.tick().await;
        (self.router.cpu().unwrap() - before, others)
    }

    /// Every kill of the good peer was ruled on as announced, and nothing else was reported of it.
    fn check_announced(&self) {
        let records = self.router.audit().unwrap();
        let of_good =
            |it: &&Value| it["record"] == "ruled" && it["signal"]["id"].as_str().unwrap().contains(":good-");
        let ruled: Vec<&Value> = records.iter().filter(of_good).collect();
        assert_eq!(ruled.len(), KILLS);
        for record in ruled {
            let kill = &record["signal"]["event"]["oom-kill"];
            assert_eq!(kill["evidence"], "announced", "{record}");
        }
    }
}

#[tokio::test]
async fn bad_kata_peers_cost_one_log_line_each_and_no_cpu() {
    let _timed = timed("bad_kata_peers_cost_one_log_line_each_and_no_cpu");
    let late = Duration::from_secs(1);
    let refusing = [
        ("unimplemented", Answer::Refusal(Code::UNIMPLEMENTED, "GetOOMEvent is not implemented")),
        ("invalid", Answer::Refusal(Code::INVALID_ARGUMENT, "/grpc.AgentService/GetOOMEvent does not exist")),
        ("unsupported", Answer::Refusal(Code::NOT_FOUND, "/grpc.AgentService/GetOOMEvent is not supported")),
        ("denied", Answer::Refusal(Code::PERMISSION_DENIED, "GetOOMEventRequest is blocked by policy")),
        ("internal", Answer::Refusal(Code::INTERNAL, "")),
        ("late-internal", Answer::LateRefusal(Code::INTERNAL, "", late)),
        ("deadline", Answer::Refusal(Code::DEADLINE_EXCEEDED, "deadline exceeded")),
        ("late-deadline", Answer::LateRefusal(Code::DEADLINE_EXCEEDED, "deadline exceeded", late)),
        ("nameless", Answer::Always("")),
        ("odd", Answer::Always("a/../b")),
    ];
    let scratch = Scratch::new().unwrap();
    let (mut names, mut peers, mut servers, mut tasks) = (Vec::new(), Vec::new(), Vec::new(), JoinSet::new());
    for (name, answer) in refusing {
        let kata = FakeKata::new(answer);
        servers.push(serve(&kata, &scratch.path(&format!("{name}.sock"))).await);
        peers.push((name, Arc::clone(&kata)));
        names.push(name);
    }
    for (name, holds) in [("hangs", true), ("closes", false)] {
        mute(&scratch.path(&format!("{name}.sock")), holds, &mut tasks);
        names.push(name);
    }
    names.push("absent");
    let mut case = Case::start(scratch, &names).await;
    let (busy, others) = case.run().await;
    assert_eq!(others, [], "nothing is made up");
    case.router.stop().await.unwrap();
    case.check_announced();
    for (name, kata) in &peers {
        print(format_args!("{name}: polled {} times", kata.polls()));
    }
    for name in names {
        let lines = case.router.logged(&format!("source=\"{name}\"")).unwrap();
        assert!((1..=2).contains(&lines), "{name}: {lines} lines");
    }
    print(format_args!("13 bad peers and a good one for ten seconds: {busy:?} of a processor"));
    assert!(busy < BUSY, "{busy:?}");
}

#[tokio::test]
async fn flooding_kata_peer_is_rate_limited() {
    let _timed = timed("flooding_kata_peer_is_rate_limited");
    let scratch = Scratch::new().unwrap();
    let floods = FakeKata::new(Answer::Always("flood"));
    let _server = serve(&floods, &scratch.path("floods.sock")).await;
    let mut case = Case::start(scratch, &["floods"]).await;
    let (busy, others) = case.run().await;
    let flood = |it: &Event| matches!(it, Event::Oom { container, .. } if container == "flood");
    assert!(others.iter().all(flood), "no exit is made up");
    case.router.stop().await.unwrap();
    case.check_announced();
    let polls = floods.polls();
    print(format_args!("a flood of ten seconds: read {polls} times, {busy:?} of a processor"));
    assert!(polls < 1000, "fifty a second, and a hundred at once");
    assert!(case.router.logged("source=\"floods\"").unwrap() <= 2);
    assert!(busy < 2 * BUSY, "{busy:?}");
}

fn source(name: &str) -> String {
    format!(
        "[[source]]\nname = \"{name}\"\ntype = \"kata\"\naddress = \"unix://@DIR@/{name}.sock\"\nmode = \"sole\"\n"
    )
}
