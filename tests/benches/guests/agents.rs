//! Agents, all in one process: each on a socket of its own, with containers of its own, one of
//! which dies whenever it is its turn.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use coroner_proto::agent::{
    Exited, HelloRequest, HelloResponse, NextSignalsRequest, NextSignalsResponse, OomKill, Signal,
    SnapshotRequest, SnapshotResponse, signal::Event,
};
use coroner_proto::agent_ttrpc::{Agent, create_agent};
use coroner_transport::Address;
use tokio::sync::Notify;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Between two rounds of signals.
const TICK: Duration = Duration::from_millis(1);
/// Signals in one answer: some 60 bytes each.
const MOST: usize = 256;

/// Arguments: a folder, how many agents, signals a second, seconds. Emits one load for each line on
/// standard input, and ends with the input.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let [folder, numbers @ ..] = arguments else { anyhow::bail!("a folder, and numbers") };
    let number = |at: usize| -> Result<usize> { Ok(numbers.get(at).context("a number")?.parse()?) };
    let (count, rate, seconds) = (number(0)?, number(1)?, number(2)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut agents, mut servers) = (Vec::new(), Vec::new());
        for at in 0..count {
            let agent = Arc::new(Simulated { at, backlog: Mutex::default(), changed: Notify::new() });
            servers.push(serve(&agent, &Path::new(folder).join(format!("{at}.sock"))).await?);
            agents.push(agent);
        }
        send("ready")?;
        while receive().await? {
            emit(&agents, rate, seconds).await;
            send("done")?;
        }
        drop(servers);
        Ok(())
    })
}

fn send(word: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// False at the end of the input.
async fn receive() -> Result<bool> {
    let line = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(line > 0)
}

/// Emits at an even pace, each agent in its turn.
async fn emit(agents: &[Arc<Simulated>], rate: usize, seconds: usize) {
    let mut tick = tokio::time::interval(TICK);
    let (begun, total, mut emitted) = (tokio::time::Instant::now(), rate * seconds, 0);
    while emitted < total {
        tick.tick().await;
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        while emitted < due.min(total) {
            agents[emitted % agents.len()].emit();
            emitted += 1;
        }
    }
}

/// Microseconds of the monotonic clock, which all processes of a machine share.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec) * 1_000_000 + part(now.tv_nsec) / 1000
}

struct Simulated {
    at: usize,
    backlog: Mutex<Backlog>,
    changed: Notify,
}

#[derive(Default)]
struct Backlog {
    seq: u64,
    /// Killed, and not ended yet.
    dying: Option<String>,
    kept: VecDeque<Signal>,
}

impl Simulated {
    fn with<T>(&self, change: impl FnOnce(&mut Backlog) -> T) -> T {
        change(&mut self.backlog.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A kill in a container, or the exit of the one that was killed last. The time it was emitted
    /// is in the container's name or the exit's pid.
    fn emit(&self) {
        self.with(|it| {
            it.seq += 1;
            let now = now();
            let (container_id, event) = match it.dying.take() {
                Some(id) => {
                    let pid = Some((now & u64::from(u32::MAX)) as u32);
                    let (is_init, status) = (Some(true), Some(137));
                    (id, Event::Exited(Exited { pid, is_init, status, ..Exited::default() }))
                }
                None => {
                    let id = format!("c{}-{}-{now}", self.at, it.seq);
                    it.dying = Some(id.clone());
                    (id, Event::OomKill(OomKill { total: 1, added: 1, ..OomKill::default() }))
                }
            };
            let (boot_ns, event) = (now * 1000, Some(event));
            let signal =
                Signal { seq: it.seq, container_id, boot_ns, wall_ms: 1, event, ..Signal::default() };
            it.kept.push_back(signal);
        });
        self.changed.notify_waiters();
    }

    fn above(&self, after: u64, most: usize) -> Vec<Signal> {
        self.with(|it| {
            let first = it.kept.front().map_or(0, |signal| signal.seq);
            let past = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
            it.kept.iter().skip(past).take(most).cloned().collect()
        })
    }

    fn dealt_with(&self, seq: u64) {
        self.with(|it| {
            while it.kept.front().is_some_and(|signal| signal.seq <= seq) {
                it.kept.pop_front();
            }
        });
    }
}

struct Service(Arc<Simulated>);

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse { stream_id: format!("simulated-{}", self.0.at), ..HelloResponse::default() })
    }

    async fn next_signals(
        &self,
        _: &TtrpcContext,
        request: NextSignalsRequest,
    ) -> ttrpc::Result<NextSignalsResponse> {
        let stream_id = request.stream_id;
        self.0.dealt_with(request.ack_seq);
        if request.after_seq == u64::MAX {
            return Ok(NextSignalsResponse { stream_id, ..NextSignalsResponse::default() });
        }
        let until = tokio::time::Instant::now() + Duration::from_millis(request.wait_ms.into());
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let signals = self.0.above(request.after_seq, MOST.min(request.max as usize));
            if !signals.is_empty() || tokio::time::timeout_at(until, changed).await.is_err() {
                return Ok(NextSignalsResponse { stream_id, signals, ..NextSignalsResponse::default() });
            }
        }
    }

    /// An empty snapshot, and no container is announced to appear: only the path of the signals is
    /// measured.
    async fn snapshot(&self, _: &TtrpcContext, _: SnapshotRequest) -> ttrpc::Result<SnapshotResponse> {
        Ok(SnapshotResponse::default())
    }
}

async fn serve(agent: &Arc<Simulated>, socket: &Path) -> Result<Server> {
    let listener = coroner_transport::listen(&Address::Unix(socket.to_owned()))?;
    let services = create_agent(Arc::new(Service(Arc::clone(agent))));
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await?;
    Ok(server)
}
