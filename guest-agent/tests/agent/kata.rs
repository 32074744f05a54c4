//! Kata's calls, as a Kata runtime makes them: over links that are cut, from two pollers at once,
//! and until the agent stops.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use coroner_proto::kata::health_check_response::ServingStatus;
use coroner_proto::kata::{CheckRequest, GetOOMEventRequest};
use coroner_proto::kata_ttrpc::{AgentServiceClient, HealthClient};
use coroner_transport::Address;
use ttrpc::asynchronous::Client;
use ttrpc::{Code, Error, context};

use crate::harness::{Agent, Reader, Scratch, TIMEOUT, limit};

const LIMIT: u64 = 16 << 20;
/// Deadline of a call. The agent answers a quarter of it earlier, at most 100 ms. On a machine that
/// stalls for longer than that an answer is lost.
const SHORT: Duration = Duration::from_millis(200);
/// Links cut.
const CUTS: usize = 50;
/// u32 length, u32 stream, type, flags.
const HEADER: usize = 10;

/// A client of Kata's GetOOMEvent.
struct Poller(AgentServiceClient);

impl Poller {
    async fn of(address: &Address) -> Self {
        Self(AgentServiceClient::new(Client::new(coroner_transport::connect(address).await.unwrap())))
    }

    /// One call; returns the container of the kill.
    async fn poll(&self, patience: Duration) -> ttrpc::Result<String> {
        let request = GetOOMEventRequest::default();
        let event = self.0.get_oom_event(context::with_duration(patience), &request).await?;
        Ok(event.container_id)
    }

    /// Every kill that is available now.
    async fn all(&self) -> BTreeSet<String> {
        let mut received = BTreeSet::new();
        loop {
            match self.poll(SHORT).await {
                Ok(id) => drop(received.insert(id)),
                Err(error) if is_agents_deadline(&error) => return received,
                Err(_) => {}
            }
        }
    }
}

/// Whether the agent ended the call at its deadline. On a busy machine the client's own timeout may
/// come first.
fn is_agents_deadline(error: &Error) -> bool {
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

/// Runs a container in which a child is killed, until `reader` has received the kill and the exit.
async fn kill(reader: &mut Reader, scratch: &Scratch, id: &str) {
    let mut child = reader.run(scratch, id, LIMIT, "tail /dev/zero; exit 1").await;
    let reports = reader.until_exit(id).await;
    assert!(!reports.kills.is_empty());
    child.wait().unwrap();
}

/// A proxy between one poller and the agent: forwards the request and drops the answer. Both links
/// close when the returned streams are dropped.
fn drop_answer(listener: &UnixListener, agent: &Path) -> [UnixStream; 2] {
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
async fn kill_lost_with_its_link_sent_to_next_poller() {
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
        let between = tokio::task::spawn_blocking(move || drop(drop_answer(&listener, &path)));
        let (answer, (), ()) = tokio::join!(
            poller.poll(TIMEOUT),
            async { between.await.unwrap() },
            kill(&mut reader, &scratch, &id)
        );
        answer.expect_err("its answer was dropped");
        assert!(Poller::of(&agent.address).await.all().await.contains(&id), "{id}");
    }
}

#[tokio::test]
async fn poller_that_disconnects_during_kill_loses_nothing() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let mut answered = 0;
    for round in 0..CUTS {
        let id = format!("left-{round}");
        let poller = Poller::of(&agent.address).await;
        let mut child = reader.run(&scratch, &id, LIMIT, "tail /dev/zero; exit 1").await;
        // The agent answers both at once: this poller disconnects when the reader has its answer.
        tokio::select! {
            biased;
            _ = reader.until_kill(&id) => {}
            answer = poller.poll(TIMEOUT) => {
                answer.unwrap();
                answered += 1;
            }
        }
        drop(poller);
        reader.until_exit(&id).await;
        child.wait().unwrap();
        assert!(Poller::of(&agent.address).await.all().await.contains(&id), "{id}");
    }
    eprintln!("of {CUTS} pollers, {answered} had an answer and no further request");
}

#[tokio::test]
async fn two_pollers_each_receive_every_kill() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let (one, two) = (Poller::of(&agent.address).await, Poller::of(&agent.address).await);
    let ids: BTreeSet<String> = (0..5).map(|at| format!("both-{at}")).collect();
    let until_all = async |poller: &Poller| {
        let mut received = BTreeSet::new();
        while received != ids {
            received.insert(poller.poll(TIMEOUT).await.unwrap());
        }
    };
    tokio::join!(until_all(&one), until_all(&two), async {
        for id in &ids {
            kill(&mut reader, &scratch, id).await;
        }
    });
}

#[tokio::test]
async fn call_past_deadline_fails_and_loses_nothing() {
    let deadline = SHORT * 2;
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let poller = Poller::of(&agent.address).await;
    let ids: BTreeSet<String> = (0..5).map(|at| format!("timed-{at}")).collect();
    let (mut received, begun) = (BTreeSet::new(), Instant::now());
    // Nothing is killed yet: the agent's deadline answer arrives, maybe after calls that ended at
    // the client's own timeout.
    while !is_agents_deadline(&poller.poll(deadline).await.expect_err("nothing was killed yet")) {
        assert!(begun.elapsed() < TIMEOUT, "the agent never answers DEADLINE_EXCEEDED");
    }
    tokio::join!(
        async {
            while received != ids {
                assert!(begun.elapsed() < TIMEOUT, "of {ids:?} only {received:?} were received");
                match poller.poll(deadline).await {
                    Ok(id) => drop(received.insert(id)),
                    Err(error) => drop(is_agents_deadline(&error)),
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
async fn late_answer_repeated_once_on_the_same_link() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let folder = tempfile::tempdir().unwrap();
    let near = folder.path().join("near.sock");
    let listener = UnixListener::bind(&near).unwrap();
    let poller = Poller::of(&Address::Unix(near)).await;
    let Address::Unix(path) = agent.address.clone() else { panic!("a path") };
    let between = std::thread::spawn(move || {
        let [mut near, mut far] = drop_answer(&listener, &path);
        for _ in 0..2 {
            far.write_all(&frame(&mut near)).unwrap();
            near.write_all(&frame(&mut far)).unwrap();
        }
    });
    kill(&mut reader, &scratch, "late").await;
    let error = poller.poll(SHORT * 5).await.expect_err("its answer was dropped");
    assert!(!is_agents_deadline(&error));
    assert_eq!(poller.poll(TIMEOUT).await.unwrap(), "late");
    kill(&mut reader, &scratch, "next").await;
    assert_eq!(poller.poll(TIMEOUT).await.unwrap(), "next");
    between.join().unwrap();
}

#[tokio::test]
async fn open_poll_fails_as_unavailable_at_agent_stop() {
    for _ in 0..CUTS {
        let scratch = Scratch::new();
        let mut agent = Agent::start(&[&scratch.name], None);
        let link = Client::new(coroner_transport::connect(&agent.address).await.unwrap());
        let (poller, health) = (Poller(AgentServiceClient::new(link.clone())), HealthClient::new(link));
        let (answer, ()) = tokio::join!(poller.poll(TIMEOUT), async {
            // The poll has reached the agent once a later call on the same link is answered.
            health.check(limit(), &CheckRequest::default()).await.unwrap();
            tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
        });
        let error = answer.unwrap_err();
        assert_eq!(code(&error), Some(Code::UNAVAILABLE), "{error}");
    }
}

#[tokio::test]
async fn health_check_answers_serving() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let health = HealthClient::new(Client::new(coroner_transport::connect(&agent.address).await.unwrap()));
    let answer = health.check(limit(), &CheckRequest::default()).await.unwrap();
    assert_eq!(answer.status.enum_value(), Ok(ServingStatus::SERVING));
}
