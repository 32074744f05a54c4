//! The part of containerd that receives events. Each event carries when it was emitted, which gives
//! its latency.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::agents::now;

/// Events that were taken and not counted yet.
const UNCOUNTED: usize = 1 << 16;

pub(crate) struct Containerd {
    took: mpsc::Receiver<u64>,
    _server: Server,
}

/// What it was handed.
pub(crate) struct Took {
    /// In microseconds.
    pub(crate) latencies: Vec<u64>,
    /// From the first to the last.
    pub(crate) within: Duration,
}

struct Service(mpsc::Sender<u64>);

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.into_option().unwrap_or_default();
        let bytes = &envelope.event.value;
        let took = if envelope.topic == "/tasks/oom" {
            let event = TaskOOM::parse_from_bytes(bytes).ok();
            event.and_then(|it| Some(now() - it.container_id.rsplit('-').next()?.parse::<u64>().ok()?))
        } else {
            let event = TaskExit::parse_from_bytes(bytes).ok();
            // The lower half of the clock, which goes round in more than an hour.
            event.map(|it| u64::from((now() as u32).wrapping_sub(it.pid)))
        };
        self.0.send(took.expect("what the agents emitted")).await.ok();
        Ok(Empty::new())
    }
}

impl Containerd {
    pub(crate) async fn serve(socket: &Path) -> Result<Self> {
        let (service, took) = mpsc::channel(UNCOUNTED);
        let services = create_events(Arc::new(Service(service)));
        let mut server =
            Server::new().bind(&format!("unix://{}", socket.display()))?.register_service(services);
        server.start().await?;
        Ok(Self { took, _server: server })
    }

    /// Waits for so many events.
    pub(crate) async fn take(&mut self, count: usize, patience: Duration) -> Result<Took> {
        let (mut latencies, mut begun) = (Vec::with_capacity(count), None);
        while latencies.len() < count {
            let next = tokio::time::timeout(patience, self.took.recv()).await;
            let next = next.with_context(|| format!("{} of {count} events came", latencies.len()))?;
            begun.get_or_insert_with(Instant::now);
            latencies.push(next.context("served until the end")?);
        }
        Ok(Took { latencies, within: begun.map_or(Duration::ZERO, |it| it.elapsed()) })
    }
}
