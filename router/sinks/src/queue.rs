//! A lane's bounded queue, which is filled during deliveries too.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Document;
use super::accounting::Accounting;
use crate::counts::DropReason;
use crate::settings::Overflow;

/// A lane's inputs; `None`: no route leads here, or the sender is gone.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) records: Option<mpsc::Receiver<Arc<Document>>>,
    /// Closes before `records` does: the delivery of an event is itself a record.
    pub(super) events: Option<mpsc::Receiver<Arc<Document>>>,
}

/// The queue without the batch in delivery.
#[derive(Debug)]
pub(super) struct DocumentQueue {
    inbox: Inbox,
    queue: VecDeque<Arc<Document>>,
    most: usize,
    overflow: Overflow,
    /// How many documents the delivery under way has, and when the oldest was made.
    flying: (usize, Option<Instant>),
}

impl DocumentQueue {
    pub(super) fn new(inbox: Inbox, most: usize, overflow: Overflow) -> Self {
        Self { inbox, queue: VecDeque::new(), most, overflow, flying: (0, None) }
    }

    /// Records what the delivery under way has: it counts as queued until the sink has it.
    pub(super) fn deliver(&mut self, batch: &[Arc<Document>], accounting: &Accounting) {
        self.flying = (batch.len(), batch.iter().map(|it| it.made).min());
        self.count(accounting);
    }

    fn count(&self, accounting: &Accounting) {
        let (flying, oldest) = self.flying;
        accounting.counts.waiting(self.queue.len() + flying, oldest.or(self.queue.front().map(|it| it.made)));
    }

    /// Whether an event is queued or may still come.
    pub(super) fn holds_events(&self) -> bool {
        self.inbox.events.is_some() || self.queue.iter().any(|it| it.signal.is_some())
    }

    /// The oldest documents, at most `most`. Empty: an input has closed. `None`: the queue is empty
    /// and all inputs have closed.
    pub(super) async fn batch(&mut self, most: usize, accounting: &Accounting) -> Option<Vec<Arc<Document>>> {
        self.deliver(&[], accounting);
        if self.queue.is_empty() {
            if !self.is_open() {
                return None;
            }
            self.receive(accounting).await;
        }
        // Adds what has arrived meanwhile.
        for inbox in [&mut self.inbox.records, &mut self.inbox.events].into_iter().flatten() {
            while self.queue.len() < self.most.min(most)
                && let Ok(document) = inbox.try_recv()
            {
                self.queue.push_back(document);
            }
        }
        let batch: Vec<_> = self.queue.drain(..most.min(self.queue.len())).collect();
        self.deliver(&batch, accounting);
        Some(batch)
    }

    /// Awaits another future and fills the queue meanwhile.
    pub(super) async fn meanwhile<T>(
        &mut self,
        other: impl Future<Output = T>,
        accounting: &Accounting,
    ) -> T {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return done,
                () = self.receive(accounting), if self.is_open() => {}
            }
        }
    }

    /// Closes the inputs and returns what is left.
    pub(super) fn close(&mut self) -> Vec<Arc<Document>> {
        let mut left: Vec<_> = self.queue.drain(..).collect();
        for mut inbox in [self.inbox.records.take(), self.inbox.events.take()].into_iter().flatten() {
            inbox.close();
            while let Ok(document) = inbox.try_recv() {
                left.push(document);
            }
        }
        left
    }

    fn is_open(&self) -> bool {
        self.inbox.records.is_some() || self.inbox.events.is_some()
    }

    /// Receives one document, or notes that an input has closed.
    async fn receive(&mut self, accounting: &Accounting) {
        let Inbox { records, events } = &mut self.inbox;
        let document = tokio::select! {
            document = next(records) => document,
            document = next(events) => document,
        };
        let Some(document) = document else { return };
        if self.queue.len() < self.most {
            self.queue.push_back(document);
            return self.count(accounting);
        }
        let evicted = match self.overflow {
            Overflow::DropNewest => Some(document),
            Overflow::DropOldest => {
                self.queue.push_back(document);
                self.queue.pop_front()
            }
        };
        if let Some(document) = evicted {
            accounting.dropped(&document, DropReason::Full, 0, None);
        }
    }
}

async fn next(inbox: &mut Option<mpsc::Receiver<Arc<Document>>>) -> Option<Arc<Document>> {
    let document = match inbox {
        Some(inbox) => inbox.recv().await,
        None => std::future::pending().await,
    };
    if document.is_none() {
        *inbox = None;
    }
    document
}
