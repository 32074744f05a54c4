//! Kata's calls about OOM kills, for runtimes that poll them: docs/reference/agent-protocol.md,
//! "Kata's calls".

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::kata::health_check_response::ServingStatus;
use coroner_proto::kata::{CheckRequest, GetOOMEventRequest, HealthCheckResponse, OOMEvent};
use coroner_proto::kata_ttrpc::{AgentService, Health};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, Error, get_status};

use crate::kata_cursors::ConsumerId;
use crate::log::log;
use crate::shared_state::SharedState;

/// Subtracted from the caller's deadline: a reply closer to it may arrive after the caller gave up.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);
/// Longest wait for a caller without a deadline. Kata's shims wait for as long as the pod lives.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Serves GetOOMEvent on one connection.
#[derive(Debug)]
pub(crate) struct KataService {
    shared: Arc<SharedState>,
    waiting: Arc<Semaphore>,
    cursor: Mutex<Cursor>,
}

/// The connection's cursor. Kills up to `consumed` are acknowledged; `sent` was answered, and
/// counts as consumed at the next call.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    consumer: Option<ConsumerId>,
    consumed: u64,
    sent: u64,
    /// When the caller of the last answer may have given up, if it has a deadline.
    expires: Option<Instant>,
}

impl KataService {
    pub(crate) fn new(shared: Arc<SharedState>, waiting: Arc<Semaphore>) -> Self {
        Self { shared, waiting, cursor: Mutex::default() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Cursor) -> T) -> T {
        change(&mut self.cursor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Acknowledges the last answer, unless its caller may have timed out before it arrived: then
    /// it is sent once more. The first call connects a consumer. Returns the cursor.
    fn acknowledge_last(&self) -> u64 {
        let (consumed, lost) = self.with(|cursor| {
            self.shared.with(|state| {
                if let Some(consumer) = cursor.consumer {
                    if cursor.expires.take().is_none_or(|expires| Instant::now() < expires) {
                        cursor.consumed = cursor.sent;
                    }
                    state.kata_cursors.advance(consumer, cursor.consumed);
                } else {
                    let (consumer, from) = state.kata_cursors.connect();
                    (cursor.consumer, cursor.consumed, cursor.sent) = (Some(consumer), from, from);
                }
                (cursor.consumed, state.kata_cursors.take_lost())
            })
        });
        if lost > 0 {
            log!(Warn, "kills were dropped before every consumer of GetOOMEvent had read them", lost = lost);
        }
        consumed
    }

    /// Records that a kill is being sent; `until`: the caller's deadline.
    fn record_sent(&self, seq: u64, until: Option<Instant>) {
        self.with(|cursor| {
            // Repeated at most once: a caller that processes a kill for longer than its timeout
            // would otherwise receive the same kill for ever.
            cursor.expires = until.filter(|_| seq > cursor.sent);
            cursor.sent = cursor.sent.max(seq);
        });
    }
}

impl Drop for KataService {
    fn drop(&mut self) {
        if let Some(consumer) = self.with(|cursor| cursor.consumer) {
            self.shared.with(|state| state.kata_cursors.disconnect(consumer));
        }
    }
}

#[async_trait]
impl AgentService for KataService {
    async fn get_oom_event(&self, context: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Err(refused(Code::RESOURCE_EXHAUSTED, "too many calls are waiting; retry later"));
        };
        let deadline = u64::try_from(context.timeout_nano).ok().filter(|nanoseconds| *nanoseconds > 0);
        let timeout = deadline.map_or(MAX_WAIT, |nanoseconds| {
            let deadline = Duration::from_nanos(nanoseconds);
            deadline - DEADLINE_MARGIN.min(deadline / 4)
        });
        let until = Instant::now() + timeout;
        let mut progress = self.shared.progress();
        let after = self.acknowledge_last();
        loop {
            progress.mark_unchanged();
            if let Some((seq, container_id)) = self.shared.with(|state| state.next_kill(after)) {
                self.record_sent(seq, deadline.map(|_| until));
                return Ok(OOMEvent { container_id, ..OOMEvent::default() });
            }
            if progress.borrow().stopping {
                return Err(refused(Code::UNAVAILABLE, "the agent is stopping"));
            }
            match timeout_at(until, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(refused(Code::UNAVAILABLE, "the agent is stopping")),
                Err(_) => return Err(refused(Code::DEADLINE_EXCEEDED, "no OOM kill before the deadline")),
            }
        }
    }
}

/// Answers Kata's health check.
#[derive(Debug)]
pub(crate) struct HealthService;

#[async_trait]
impl Health for HealthService {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..HealthCheckResponse::default() })
    }
}

fn refused(code: Code, message: &str) -> Error {
    Error::RpcStatus(get_status(code, message.to_owned()))
}
