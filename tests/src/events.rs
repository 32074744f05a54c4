//! Everything containerd's event exchange carries, in the order it carried it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use containerd_client::events::{ContainerCreate, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::to_any;
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Request;
use tonic::transport::Channel;

/// The topic of an OOM kill.
pub const OOM: &str = "/tasks/oom";
/// The topic of a process's end.
pub const EXIT: &str = "/tasks/exit";
/// The topic of an exec that was created.
pub const EXEC_ADDED: &str = "/tasks/exec-added";
/// The topic of an exec that was started.
pub const EXEC_STARTED: &str = "/tasks/exec-started";
/// Published by the subscriber itself, to know when its subscription is active.
const PROBE: &str = "/coroner-test/probe";

const SUBSCRIBED: Duration = Duration::from_secs(10);

/// One event about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Such as `/tasks/oom`.
    pub topic: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container it is about; empty where the topic is not decoded here.
    pub container: String,
    /// The exec it is about; `None`: the container's init, or the container.
    pub exec: Option<String>,
    /// The process's id, where the topic carries one.
    pub pid: Option<u32>,
    /// The exit status of a `/tasks/exit`.
    pub status: Option<u32>,
    /// The time of publication according to its publisher.
    pub published: Option<SystemTime>,
    /// When it arrived.
    pub received: Instant,
}

/// An active subscription.
#[derive(Debug)]
pub struct Events {
    seen: watch::Receiver<Vec<Event>>,
    _reader: JoinSet<()>,
}

impl Events {
    /// Subscribes to all topics, and returns once events do arrive.
    pub async fn subscribe(socket: &Path) -> Result<Self> {
        let client = EventsClient::new(containerd_client::connect(socket).await?);
        let (sender, seen) = watch::channel(Vec::new());
        let mut reader = JoinSet::new();
        reader.spawn(read(client.clone(), sender));
        let mut events = Self { seen, _reader: reader };
        // containerd answers a subscription with its first event, so a lone subscriber cannot know
        // when it is active.
        timeout(SUBSCRIBED, events.probe(client))
            .await
            .context("waiting for the subscription to be active")??;
        Ok(events)
    }

    async fn probe(&mut self, mut client: EventsClient<Channel>) -> Result<()> {
        loop {
            // containerd 1.6 dies of an event without a body; the topic is one without subscribers.
            let event =
                PublishRequest { topic: PROBE.to_owned(), event: Some(to_any(&ContainerCreate::default())) };
            let mut request = Request::new(event);
            request.metadata_mut().insert("containerd-namespace", "k8s.io".parse()?);
            client.publish(request).await?;
            let arrived = self.seen.wait_for(|seen| seen.iter().any(|event| event.topic == PROBE));
            if let Ok(result) = timeout(Duration::from_millis(20), arrived).await {
                result.context("the event stream ended")?;
                return Ok(());
            }
        }
    }

    /// How often `topic` was seen so far for a container.
    pub fn count(&self, topic: &str, container: &str) -> usize {
        count(&self.seen.borrow(), topic, container)
    }

    /// All events about a container so far, in order.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.seen.borrow().iter().filter(|event| event.container == container).cloned().collect()
    }

    /// Waits until `topic` was seen `times` times for a container.
    pub async fn wait_for(
        &mut self,
        topic: &str,
        container: &str,
        times: usize,
        deadline: Duration,
    ) -> Result<()> {
        let what = format!("{times} {topic} of {container}");
        self.wait_until(&what, deadline, |seen| count(seen, topic, container) >= times).await
    }

    /// Waits until all that was seen so far is as `wanted`; `what` names that in the error.
    pub async fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&[Event]) -> bool,
    ) -> Result<()> {
        let enough = self.seen.wait_for(|seen| wanted(seen));
        let result = timeout(deadline, enough).await;
        result.with_context(|| format!("timeout of {deadline:?} waiting for {what}"))??;
        Ok(())
    }
}

async fn read(mut client: EventsClient<Channel>, sender: watch::Sender<Vec<Event>>) {
    let Ok(answer) = client.subscribe(SubscribeRequest::default()).await else { return };
    let mut stream = answer.into_inner();
    while let Ok(Some(envelope)) = stream.message().await {
        sender.send_modify(|seen| seen.push(event(envelope)));
    }
}

fn event(envelope: Envelope) -> Event {
    let body = envelope.event.map(|event| event.value).unwrap_or_default();
    let subject = Subject::read(&envelope.topic, &body)
        .unwrap_or_else(|error| Subject { container: format!("undecodable: {error}"), ..Subject::default() });
    Event {
        topic: envelope.topic,
        namespace: envelope.namespace,
        container: subject.container,
        exec: subject.exec,
        pid: subject.pid,
        status: subject.status,
        published: envelope.timestamp.and_then(|time| time.try_into().ok()),
        received: Instant::now(),
    }
}

/// The process that an event is about.
#[derive(Default)]
struct Subject {
    container: String,
    exec: Option<String>,
    pid: Option<u32>,
    status: Option<u32>,
}

impl Subject {
    fn read(topic: &str, body: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(match topic {
            OOM => Self { container: TaskOom::decode(body)?.container_id, ..Self::default() },
            EXIT => {
                let it = TaskExit::decode(body)?;
                Self {
                    exec: (it.id != it.container_id).then_some(it.id),
                    container: it.container_id,
                    pid: Some(it.pid),
                    status: Some(it.exit_status),
                }
            }
            EXEC_ADDED => {
                let it = TaskExecAdded::decode(body)?;
                Self { container: it.container_id, exec: Some(it.exec_id), ..Self::default() }
            }
            EXEC_STARTED => {
                let it = TaskExecStarted::decode(body)?;
                Self { container: it.container_id, exec: Some(it.exec_id), pid: Some(it.pid), status: None }
            }
            _ => Self::default(),
        })
    }
}

fn count(seen: &[Event], topic: &str, container: &str) -> usize {
    seen.iter().filter(|event| event.topic == topic && event.container == container).count()
}
