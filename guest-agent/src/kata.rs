//! The calls of Kata's agent that concern OOM kills, for runtimes that poll it: docs/agent-protocol.md, "Kata's calls".

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

use crate::log::log;
use crate::polls;
use crate::shared::Shared;

/// A reply this shortly before the caller's own deadline may find it gone.
const MARGIN: Duration = Duration::from_millis(100);
/// Without a deadline of the caller's: a day. Kata's shims wait for as long as the pod lives.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// One connection's consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    waiting: Arc<Semaphore>,
    cursor: Mutex<Cursor>,
}

/// Who it is once it has polled. Kills up to `taken` are the consumer's; `given` was told, and is taken when it asks again.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    consumer: Option<polls::Consumer>,
    taken: u64,
    given: u64,
    /// When whoever was told `given` may have given the call up, if it has a deadline.
    doubt: Option<Instant>,
}

impl Consumer {
    pub(crate) fn new(shared: Arc<Shared>, waiting: Arc<Semaphore>) -> Self {
        Self { shared, waiting, cursor: Mutex::default() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Cursor) -> T) -> T {
        change(&mut self.cursor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the last call told is taken, unless its caller may have given up before the answer came: that is told once more. The first call
    /// goes on where a consumer ended.
    fn begin(&self) -> u64 {
        let (taken, lost) = self.with(|cursor| {
            self.shared.with(|state| {
                if let Some(consumer) = cursor.consumer {
                    if cursor.doubt.take().is_none_or(|doubt| Instant::now() < doubt) {
                        cursor.taken = cursor.given;
                    }
                    state.polls.took(consumer, cursor.taken);
                } else {
                    let (consumer, from) = state.polls.begin();
                    (cursor.consumer, cursor.taken, cursor.given) = (Some(consumer), from, from);
                }
                (cursor.taken, state.polls.lost())
            })
        });
        if lost > 0 {
            log!(Warn, "kills were dropped before every poller had taken them", lost = lost);
        }
        taken
    }

    /// A kill is on its way; `until`: the caller waits no longer than that.
    fn give(&self, seq: u64, until: Option<Instant>) {
        self.with(|cursor| {
            // In doubt once: a caller that takes longer over each than it waits for the next would else be told the same for ever.
            cursor.doubt = until.filter(|_| seq > cursor.given);
            cursor.given = cursor.given.max(seq);
        });
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if let Some(consumer) = self.with(|cursor| cursor.consumer) {
            self.shared.with(|state| state.polls.end(consumer));
        }
    }
}

#[async_trait]
impl AgentService for Consumer {
    async fn get_oom_event(&self, context: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Err(refused(Code::RESOURCE_EXHAUSTED, "too many calls wait already"));
        };
        let deadline = u64::try_from(context.timeout_nano).ok().filter(|nanoseconds| *nanoseconds > 0);
        let patience = deadline.map_or(LONGEST, |nanoseconds| {
            let whole = Duration::from_nanos(nanoseconds);
            whole - MARGIN.min(whole / 4)
        });
        let until = Instant::now() + patience;
        let mut told = self.shared.told();
        let after = self.begin();
        loop {
            told.mark_unchanged();
            if let Some((seq, container_id)) = self.shared.with(|state| state.next_kill(after)) {
                self.give(seq, deadline.map(|_| until));
                return Ok(OOMEvent { container_id, ..OOMEvent::default() });
            }
            if told.borrow().stopping {
                return Err(refused(Code::UNAVAILABLE, "the agent is stopping"));
            }
            match timeout_at(until, told.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(refused(Code::UNAVAILABLE, "the agent is stopping")),
                Err(_) => return Err(refused(Code::DEADLINE_EXCEEDED, "no OOM kill in this time")),
            }
        }
    }
}

/// Says that somebody is here.
#[derive(Debug)]
pub(crate) struct Pulse;

#[async_trait]
impl Health for Pulse {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..HealthCheckResponse::default() })
    }
}

fn refused(code: Code, message: &str) -> Error {
    Error::RpcStatus(get_status(code, message.to_owned()))
}
