//! One sink's queue, and the task that empties it: batches, tries again in place, gives up at the deadline. A sink that hangs holds up its own lane alone.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::books::Books;
use super::waiting::{Inbox, Waiting};
use super::{Document, Sink, SinkError};
use crate::config::Queue;
use crate::counts::DropReason;

/// Between two tries. Jitter adds up to as much again: routers that lost the same receiver do not come back to it as one.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(15);
/// A lane that takes audit records goes on for so long after the others were told to give up: what those gave up is still written down.
const GRACE: Duration = Duration::from_millis(500);

/// One sink and all that waits for it.
#[derive(Debug)]
pub struct Lane {
    sink: Box<dyn Sink>,
    deadline: Duration,
    batch: usize,
    waiting: Waiting,
    books: Books,
    /// The last try failed.
    failing: bool,
    give_up: watch::Receiver<bool>,
    grace: Duration,
}

impl Lane {
    pub(super) fn new(
        queue: &Queue,
        sink: Box<dyn Sink>,
        inbox: Inbox,
        books: Books,
        give_up: watch::Receiver<bool>,
    ) -> Self {
        let grace = if inbox.records.is_some() { GRACE } else { Duration::ZERO };
        let batch = queue.batch.min(sink.most());
        let waiting = Waiting::new(inbox, queue.documents, queue.overflow);
        Self { sink, deadline: queue.deadline, batch, waiting, books, failing: false, give_up, grace }
    }

    /// The sink's name.
    pub fn name(&self) -> &str {
        &self.books.sink
    }

    /// Delivers until everybody who could tell something is gone and all of it has left, or until it is told to give up.
    pub async fn run(mut self) {
        let mut over = pin!(over(self.give_up.clone(), self.grace));
        loop {
            // Nothing is left whose fate is a record of its own: lanes of records wait for this one no longer.
            if self.books.tells() && !self.waiting.holds_events() {
                self.books.tell_no_more();
            }
            let batch = tokio::select! {
                biased;
                () = &mut over => return self.stop().await,
                batch = self.waiting.batch(self.batch, &self.books) => batch,
            };
            let Some(batch) = batch else { return };
            if !self.deliver(batch, over.as_mut()).await {
                return self.stop().await;
            }
        }
    }

    /// Delivers a batch, or gives it up. False: the lane's time is over.
    async fn deliver(
        &mut self,
        mut batch: Vec<Arc<Document>>,
        mut over: Pin<&mut impl Future<Output = ()>>,
    ) -> bool {
        let mut gaps = backon::ExponentialBuilder::default()
            .with_min_delay(FIRST_GAP)
            .with_max_delay(LONGEST_GAP)
            .with_jitter()
            .without_max_times()
            .build();
        let mut attempts = 0;
        let mut last: Option<String> = None;
        loop {
            let now = Instant::now();
            let (late, rest) = batch.into_iter().partition(|it| it.made + self.deadline <= now);
            self.bury(late, DropReason::Deadline, attempts, last.as_deref()).await;
            batch = rest;
            let Some(youngest) = batch.last() else { return true };
            let until = youngest.made + self.deadline;
            attempts += 1;
            let Self { sink, waiting, books, .. } = self;
            let tried = tokio::select! {
                biased;
                () = over.as_mut() => None,
                tried = waiting.meanwhile(timeout_at(until, sink.deliver(&batch)), books) => Some(tried),
            };
            let tried = tried.map(|it| it.unwrap_or_else(|_| Err(SinkError::again("it does not answer"))));
            let wanted = match tried {
                Some(Ok(())) => {
                    self.took(&batch, attempts, last.as_deref());
                    return true;
                }
                Some(Err(SinkError::Refused(error))) => {
                    self.books.failed();
                    self.bury(batch, DropReason::Refused, attempts, Some(&error)).await;
                    return true;
                }
                Some(Err(SinkError::Again { error, after })) => {
                    self.failed(&error, attempts);
                    last = Some(error);
                    after
                }
                None => {
                    self.bury(batch, DropReason::Stopped, attempts, last.as_deref()).await;
                    return false;
                }
            };
            let gap = wanted.or_else(|| gaps.next()).unwrap_or(LONGEST_GAP);
            // What the sink asks for may be any number; nothing is waited for beyond the deadline.
            let then = Instant::now().checked_add(gap).unwrap_or(until).min(until);
            let stopped = tokio::select! {
                biased;
                () = over.as_mut() => true,
                () = self.waiting.meanwhile(sleep_until(then), &self.books) => false,
            };
            if stopped {
                self.bury(batch, DropReason::Stopped, attempts, last.as_deref()).await;
                return false;
            }
        }
    }

    async fn bury(
        &mut self,
        documents: Vec<Arc<Document>>,
        reason: DropReason,
        attempts: u32,
        error: Option<&str>,
    ) {
        let burial = self.books.bury(documents, reason, attempts, error);
        self.waiting.meanwhile(burial, &self.books).await;
    }

    fn took(&mut self, batch: &[Arc<Document>], attempts: u32, error: Option<&str>) {
        self.books.took(batch, attempts, error);
        if std::mem::take(&mut self.failing) {
            tracing::info!(sink = self.name(), "the sink takes documents again");
        }
    }

    fn failed(&mut self, error: &str, attempts: u32) {
        self.books.failed();
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(sink = self.name(), error, attempts, "the sink does not take documents");
        }
    }

    /// Its time is over: what is left is dropped.
    async fn stop(mut self) {
        let left = self.waiting.close();
        if !left.is_empty() {
            tracing::warn!(
                sink = self.name(),
                dropped = left.len(),
                "documents were not taken before the stop"
            );
        }
        self.books.bury(left, DropReason::Stopped, 0, None).await;
    }
}

/// Resolves when the lane's time is over.
async fn over(mut give_up: watch::Receiver<bool>, grace: Duration) {
    if give_up.wait_for(|it| *it).await.is_err() {
        // Nobody is left who could say so: the lane ends when it is dry.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}
