//! Kata's calls, as a runtime that knows no others makes them: over links that are cut, two at once, and until the agent stops.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use coroner_proto::address::Address;
use coroner_proto::kata::health_check_response::ServingStatus;
use coroner_proto::kata::{CheckRequest, GetOOMEventRequest};
use coroner_proto::kata_ttrpc::{AgentServiceClient, HealthClient};
use coroner_proto::transport;
use ttrpc::asynchronous::Client;
use ttrpc::{Code, Error, context};

use crate::harness::{Agent, PATIENCE, Reader, Scratch, limit};

const LIMIT: u64 = 16 << 20;
/// Far below what a kill takes: most of such calls end with nothing.
const SHORT: Duration = Duration::from_millis(40);
/// Links cut.
const CUTS: usize = 50;
/// u32 length, u32 stream, type, flags.
const HEADER: usize = 10;

/// One that polls.
struct Poller(AgentServiceClient);

impl Poller {
    async fn of(address: &Address) -> Self {
        Self(AgentServiceClient::new(Client::new(transport::connect(address).await.unwrap())))
    }

    /// One call: whose kill.
    async fn poll(&self, patience: Duration) -> ttrpc::Result<String> {
        let request = GetOOMEventRequest::default();
        let event = self.0.get_oom_event(context::with_duration(patience), &request).await?;
        Ok(event.container_id)
    }

    /// All that there is now.
    async fn all(&self) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        loop {
            match self.poll(SHORT).await {
                Ok(id) => drop(told.insert(id)),
                Err(error) if is_the_agents(&error) => return told,
                Err(_) => {}
            }
        }
    }
}

/// Whose word it is that the time is up. On a busy machine the caller's own clock may be first.
fn is_the_agents(error: &Error) -> bool {
    if let Some(code) = code(error) {
        assert_eq!(code, Code::DEADLINE_EXCEEDED, "{error}");
        return true;
    }
    assert!(error.to_string().contains("deadline"), "{error}");
    false
}

fn code(error: &Error) -> Option<Code> {
    match error {
        Error::RpcStatus(status) => Some(status.code()),
        _ => None,
    }
}

/// Runs a container in which a child is killed, until all of that was told to `reader`.
async fn kill(reader: &mut Reader, scratch: &Scratch, id: &str) {
    let mut child = reader.run(scratch, id, LIMIT, "tail /dev/zero; exit 1").await;
    let told = reader.until_exit(id).await;
    assert!(!told.kills.is_empty());
    child.wait().unwrap();
}

/// Between one poller and the agent: passes what is asked, and takes the answer for itself. Both links end with what it gives.
fn robbed(listener: &UnixListener, agent: &Path) -> [UnixStream; 2] {
    let (mut near, _) = listener.accept().unwrap();
    let mut far = UnixStream::connect(agent).unwrap();
    far.write_all(&frame(&mut near)).unwrap();
    frame(&mut far);
    [near, far]
}

fn frame(from: &mut UnixStream) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap());
    frame.resize(HEADER + length as usize, 0);
    from.read_exact(&mut frame[HEADER..]).unwrap();
    frame
}

#[tokio::test]
async fn what_was_told_on_a_link_that_was_cut_is_told_to_the_next() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let folder = tempfile::tempdir().unwrap();
    let near = folder.path().join("near.sock");
    let listener = UnixListener::bind(&near).unwrap();
    for round in 0..CUTS {
        let id = format!("cut-{round}");
        let poller = Poller::of(&Address::Unix(near.clone())).await;
        let Address::Unix(path) = agent.address.clone() else { panic!("a path") };
        let listener = listener.try_clone().unwrap();
        let between = tokio::task::spawn_blocking(move || drop(robbed(&listener, &path)));
        let (told, (), ()) = tokio::join!(
            poller.poll(PATIENCE),
            async { between.await.unwrap() },
            kill(&mut reader, &scratch, &id)
        );
        told.expect_err("its answer went nowhere");
        assert!(Poller::of(&agent.address).await.all().await.contains(&id), "{id}");
    }
}

#[tokio::test]
async fn a_poller_that_leaves_as_a_kill_comes_takes_nothing_with_it() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let mut answered = 0;
    for round in 0..CUTS {
        let id = format!("left-{round}");
        let poller = Poller::of(&agent.address).await;
        let mut child = reader.run(&scratch, &id, LIMIT, "tail /dev/zero; exit 1").await;
        // The agent tells both in one breath: this one leaves when the other reader is told.
        tokio::select! {
            biased;
            _ = reader.until_kill(&id) => {}
            told = poller.poll(PATIENCE) => {
                told.unwrap();
                answered += 1;
            }
        }
        drop(poller);
        reader.until_exit(&id).await;
        child.wait().unwrap();
        assert!(Poller::of(&agent.address).await.all().await.contains(&id), "{id}");
    }
    eprintln!("of {CUTS} that left, {answered} had their answer and had not asked again");
}

#[tokio::test]
async fn two_pollers_at_once_are_told_everything_each() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (one, two) = (Poller::of(&agent.address).await, Poller::of(&agent.address).await);
    let ids: BTreeSet<String> = (0..5).map(|at| format!("both-{at}")).collect();
    let until_all = async |poller: &Poller| {
        let mut told = BTreeSet::new();
        while told != ids {
            told.insert(poller.poll(PATIENCE).await.unwrap());
        }
    };
    tokio::join!(until_all(&one), until_all(&two), async {
        for id in &ids {
            kill(&mut reader, &scratch, id).await;
        }
    });
}

#[tokio::test]
async fn a_call_whose_time_is_up_says_so_and_loses_nothing() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let poller = Poller::of(&agent.address).await;
    let ids: BTreeSet<String> = (0..5).map(|at| format!("timed-{at}")).collect();
    let (mut told, begun) = (BTreeSet::new(), Instant::now());
    // Nothing is killed yet: the agent's word on that comes, be it after some that the caller's clock forestalled.
    while !is_the_agents(&poller.poll(SHORT).await.expect_err("nothing was killed yet")) {
        assert!(begun.elapsed() < PATIENCE, "the agent never says that the time is up");
    }
    tokio::join!(
        async {
            while told != ids {
                assert!(begun.elapsed() < PATIENCE, "of {ids:?} only {told:?} were told");
                match poller.poll(SHORT).await {
                    Ok(id) => drop(told.insert(id)),
                    Err(error) => drop(is_the_agents(&error)),
                }
            }
        },
        async {
            for id in &ids {
                kill(&mut reader, &scratch, id).await;
            }
        }
    );
}

#[tokio::test]
async fn what_came_too_late_for_its_caller_is_told_once_more_on_the_same_link() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let folder = tempfile::tempdir().unwrap();
    let near = folder.path().join("near.sock");
    let listener = UnixListener::bind(&near).unwrap();
    let poller = Poller::of(&Address::Unix(near)).await;
    let Address::Unix(path) = agent.address.clone() else { panic!("a path") };
    let between = std::thread::spawn(move || {
        let [mut near, mut far] = robbed(&listener, &path);
        for _ in 0..2 {
            far.write_all(&frame(&mut near)).unwrap();
            near.write_all(&frame(&mut far)).unwrap();
        }
    });
    kill(&mut reader, &scratch, "late").await;
    let error = poller.poll(SHORT * 25).await.expect_err("its answer went nowhere");
    assert!(!is_the_agents(&error));
    assert_eq!(poller.poll(PATIENCE).await.unwrap(), "late");
    kill(&mut reader, &scratch, "next").await;
    assert_eq!(poller.poll(PATIENCE).await.unwrap(), "next");
    between.join().unwrap();
}

#[tokio::test]
async fn a_poll_that_is_open_at_the_agents_stop_is_told_so() {
    for _ in 0..CUTS {
        let scratch = Scratch::new();
        let mut agent = Agent::start(&[&scratch.name], None);
        let link = Client::new(transport::connect(&agent.address).await.unwrap());
        let (poller, health) = (Poller(AgentServiceClient::new(link.clone())), HealthClient::new(link));
        let (told, ()) = tokio::join!(poller.poll(PATIENCE), async {
            // The poll is on its way once a call behind it on the same link has come back.
            health.check(limit(), &CheckRequest::default()).await.unwrap();
            tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
        });
        let error = told.unwrap_err();
        assert_eq!(code(&error), Some(Code::UNAVAILABLE), "{error}");
    }
}

#[tokio::test]
async fn whoever_asks_whether_the_agent_is_there_is_told_that_it_serves() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let health = HealthClient::new(Client::new(transport::connect(&agent.address).await.unwrap()));
    let answer = health.check(limit(), &CheckRequest::default()).await.unwrap();
    assert_eq!(answer.status.enum_value(), Ok(ServingStatus::SERVING));
}
