//! A lane: one sink's queue and the task that empties it, with batches, retries in place and a
//! deadline. A sink that hangs delays only its own lane.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::accounting::Accounting;
use super::backoff::exponential;
use super::queue::{DocumentQueue, Inbox};
use super::{Document, Sink, SinkError};
use crate::counts::DropReason;
use crate::settings::Queue;

/// Back-off between two attempts. Jitter adds up to as much again, so that routers that lost the
/// same receiver do not return to it at the same moment.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(15);
/// A lane of audit records continues for this long after the others gave up, so that their dropped
/// documents are still recorded.
const GRACE: Duration = Duration::from_millis(500);

/// One sink and its queue.
#[derive(Debug)]
pub struct Lane {
    sink: Box<dyn Sink>,
    deadline: Duration,
    batch: usize,
    queue: DocumentQueue,
    accounting: Accounting,
    /// The last attempt failed.
    failing: bool,
    give_up: watch::Receiver<bool>,
    grace: Duration,
}

impl Lane {
    pub(super) fn new(
        queue: &Queue,
        sink: Box<dyn Sink>,
        inbox: Inbox,
        accounting: Accounting,
        give_up: watch::Receiver<bool>,
    ) -> Self {
        let grace = if inbox.records.is_some() { GRACE } else { Duration::ZERO };
        let batch = queue.batch.min(sink.most());
        let deadline = queue.deadline;
        let queue = DocumentQueue::new(inbox, queue.documents, queue.overflow);
        Self { sink, deadline, batch, queue, accounting, failing: false, give_up, grace }
    }

    /// The sink's name.
    pub fn name(&self) -> &str {
        &self.accounting.sink
    }

    /// Delivers until all senders are gone and the queue is empty, or until `give_up` turns true.
    pub async fn run(mut self) {
        let mut over = pin!(over(self.give_up.clone(), self.grace));
        loop {
            // No delivery is left to record: the lanes of records need not wait
            // for this lane any more.
            if self.accounting.records_events() && !self.queue.holds_events() {
                self.accounting.stop_recording();
            }
            let batch = tokio::select! {
                biased;
                () = &mut over => return self.stop().await,
                batch = self.queue.batch(self.batch, &self.accounting) => batch,
            };
            let Some(batch) = batch else { return };
            if !self.deliver(batch, over.as_mut()).await {
                return self.stop().await;
            }
        }
    }

    /// Delivers a batch, or gives up at its deadline. False: the lane must stop.
    async fn deliver(
        &mut self,
        mut batch: Vec<Arc<Document>>,
        mut over: Pin<&mut impl Future<Output = ()>>,
    ) -> bool {
        let mut gaps = exponential(FIRST_GAP, LONGEST_GAP).with_jitter().build();
        let mut attempts = 0;
        let mut last: Option<String> = None;
        loop {
            let now = Instant::now();
            let (late, rest) = batch.into_iter().partition(|it| it.made + self.deadline <= now);
            self.dead_letter(late, DropReason::Deadline, attempts, last.as_deref()).await;
            batch = rest;
            self.queue.deliver(&batch, &self.accounting);
            let Some(youngest) = batch.last() else { return true };
            let until = youngest.made + self.deadline;
            attempts += 1;
            let wanted = match self.attempt(&batch, until, over.as_mut()).await {
                Some(Ok(())) => {
                    self.delivered(&batch, attempts, last.as_deref());
                    return true;
                }
                Some(Err(SinkError::Refused(error))) => {
                    self.accounting.failed();
                    self.dead_letter(batch, DropReason::Refused, attempts, Some(&error)).await;
                    return true;
                }
                Some(Err(SinkError::Again { error, after })) => {
                    self.failed(&error, attempts);
                    last = Some(error);
                    after
                }
                None => {
                    self.dead_letter(batch, DropReason::Stopped, attempts, last.as_deref()).await;
                    return false;
                }
            };
            let gap = wanted.or_else(|| gaps.next()).unwrap_or(LONGEST_GAP);
            // The sink's `Retry-After` may be any number; the wait ends at the deadline.
            let then = Instant::now().checked_add(gap).unwrap_or(until).min(until);
            let stopped = tokio::select! {
                biased;
                () = over.as_mut() => true,
                () = self.queue.meanwhile(sleep_until(then), &self.accounting) => false,
            };
            if stopped {
                self.dead_letter(batch, DropReason::Stopped, attempts, last.as_deref()).await;
                return false;
            }
        }
    }

    /// One attempt; it ends at the deadline `until`. `None`: the lane must stop.
    async fn attempt(
        &mut self,
        batch: &[Arc<Document>],
        until: Instant,
        over: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<Result<(), SinkError>> {
        let Self { sink, queue, accounting, .. } = self;
        tokio::select! {
            biased;
            () = over => None,
            tried = queue.meanwhile(timeout_at(until, sink.deliver(batch)), accounting) => {
                Some(tried.unwrap_or_else(|_| Err(SinkError::again("no answer before the deadline"))))
            }
        }
    }

    async fn dead_letter(
        &mut self,
        documents: Vec<Arc<Document>>,
        reason: DropReason,
        attempts: u32,
        error: Option<&str>,
    ) {
        let dead_letter = self.accounting.dead_letter(documents, reason, attempts, error);
        self.queue.meanwhile(dead_letter, &self.accounting).await;
    }

    fn delivered(&mut self, batch: &[Arc<Document>], attempts: u32, error: Option<&str>) {
        self.accounting.delivered(batch, attempts, error);
        if std::mem::take(&mut self.failing) {
            self.accounting.counts.reached(None);
            tracing::info!(sink = self.name(), "sink accepts documents again");
        }
    }

    fn failed(&mut self, error: &str, attempts: u32) {
        self.accounting.failed();
        self.accounting.counts.reached(Some(error.to_owned()));
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(sink = self.name(), error, attempts, "sink does not accept documents; retrying");
        }
    }

    /// Drops what is left.
    async fn stop(mut self) {
        let left = self.queue.close();
        if !left.is_empty() {
            tracing::warn!(
                sink = self.name(),
                dropped = left.len(),
                "documents not delivered before the shutdown"
            );
        }
        self.accounting.dead_letter(left, DropReason::Stopped, 0, None).await;
    }
}

/// Resolves when the lane must give up.
async fn over(mut give_up: watch::Receiver<bool>, grace: Duration) {
    if give_up.wait_for(|it| *it).await.is_err() {
        // The sender is gone: the lane ends when its queue is empty.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}
