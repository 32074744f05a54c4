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

use crate::shared::Shared;

/// Cursors kept of connections that ended. Whoever opens and closes connections could leave one behind with each.
const ABANDONED: usize = 16;
/// A reply this shortly before the caller's own deadline may find it gone.
const MARGIN: Duration = Duration::from_millis(100);
/// Without a deadline of the caller's: a day. Kata's shims wait for as long as the pod lives.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Cursors of consumers whose connection ended, for those that come next.
#[derive(Debug, Default)]
pub(crate) struct Abandoned(Mutex<Vec<u64>>);

impl Abandoned {
    fn with<T>(&self, change: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One connection's consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    abandoned: Arc<Abandoned>,
    waiting: Arc<Semaphore>,
    cursor: Mutex<Cursor>,
}

/// Kills up to `taken` are the consumer's; `given` was told, and is taken when it asks again.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    begun: bool,
    taken: u64,
    given: u64,
    /// When whoever was told `given` may have stopped waiting for it, if it had a deadline.
    doubt: Option<Instant>,
}

impl Consumer {
    pub(crate) fn new(shared: Arc<Shared>, abandoned: Arc<Abandoned>, waiting: Arc<Semaphore>) -> Self {
        Self { shared, abandoned, waiting, cursor: Mutex::default() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Cursor) -> T) -> T {
        change(&mut self.cursor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the last call told is taken, unless its caller may have left by then: that is told once more. The first call goes on where a consumer ended, the
    /// one furthest behind first.
    fn begin(&self) -> u64 {
        self.with(|cursor| {
            if !cursor.begun {
                cursor.begun = true;
                let left = self.abandoned.with(|all| {
                    let lowest = all.iter().enumerate().min_by_key(|(_, at)| **at).map(|(place, _)| place);
                    lowest.map(|place| all.swap_remove(place))
                });
                cursor.given = left.unwrap_or(0);
            }
            if !cursor.doubt.take().is_some_and(|doubt| Instant::now() >= doubt) {
                cursor.taken = cursor.given;
            }
            cursor.taken
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let cursor = self.with(|cursor| *cursor);
        if cursor.begun {
            self.abandoned.with(|all| {
                if all.len() == ABANDONED {
                    // The one furthest ahead misses the least by beginning anew.
                    let highest = all.iter().enumerate().max_by_key(|(_, at)| **at).map(|(place, _)| place);
                    highest.map(|place| all.swap_remove(place));
                }
                all.push(cursor.taken);
            });
        }
    }
}

#[async_trait]
impl AgentService for Consumer {
    async fn get_oom_event(&self, context: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Err(refused(Code::RESOURCE_EXHAUSTED, "too many calls wait already"));
        };
        let has_deadline = context.timeout_nano > 0;
        let patience = match u64::try_from(context.timeout_nano) {
            Ok(nanoseconds) if nanoseconds > 0 => {
                let whole = Duration::from_nanos(nanoseconds);
                whole - MARGIN.min(whole / 4)
            }
            _ => LONGEST,
        };
        let until = Instant::now() + patience;
        let mut told = self.shared.told();
        let after = self.begin();
        loop {
            told.mark_unchanged();
            if let Some((seq, container_id)) = self.shared.with(|state| state.next_kill(after)) {
                self.with(|cursor| {
                    // Once: who takes longer over each than it waits for the next would else never get on.
                    cursor.doubt = (has_deadline && seq > cursor.given).then_some(until);
                    cursor.given = cursor.given.max(seq);
                });
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
