//! Everything containerd's event exchange carries, in the order it carried it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use containerd_client::events::{ContainerCreate, TaskExit, TaskOom};
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
/// Published by the subscriber itself, to know when its subscription stands.
const PROBE: &str = "/coroner-test/probe";

const SUBSCRIBED: Duration = Duration::from_secs(10);

/// One event about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `/tasks/oom`, say.
    pub topic: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container it is about; empty where the topic is not decoded here.
    pub container: String,
    /// The exit status of a `/tasks/exit`.
    pub status: Option<u32>,
    /// When its publisher says it was published.
    pub published: Option<SystemTime>,
    /// When it arrived.
    pub received: Instant,
}

/// A standing subscription.
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
        // containerd answers a subscription with its first event, so a lone subscriber cannot tell when it stands.
        timeout(SUBSCRIBED, events.probe(client))
            .await
            .context("waiting for the subscription to stand")??;
        Ok(events)
    }

    async fn probe(&mut self, mut client: EventsClient<Channel>) -> Result<()> {
        loop {
            // containerd 1.6 dies of an event without a body; the topic is one that nobody listens to.
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
        let enough = self.seen.wait_for(|seen| count(seen, topic, container) >= times);
        let result = timeout(deadline, enough).await;
        result
            .with_context(|| format!("waited {deadline:?} in vain for {times} {topic} of {container}"))??;
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
    let told = match envelope.topic.as_str() {
        OOM => TaskOom::decode(body.as_slice()).map(|oom| (oom.container_id, None)),
        EXIT => TaskExit::decode(body.as_slice()).map(|exit| (exit.container_id, Some(exit.exit_status))),
        _ => Ok((String::new(), None)),
    };
    let (container, status) = told.unwrap_or_else(|error| (format!("undecodable: {error}"), None));
    Event {
        topic: envelope.topic,
        namespace: envelope.namespace,
        container,
        status,
        published: envelope.timestamp.and_then(|time| time.try_into().ok()),
        received: Instant::now(),
    }
}

fn count(seen: &[Event], topic: &str, container: &str) -> usize {
    seen.iter().filter(|event| event.topic == topic && event.container == container).count()
}
