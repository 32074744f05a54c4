//! What waits for one sink: a bounded queue, filled also while a delivery is under way.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Document;
use super::books::Books;
use crate::config::Overflow;
use crate::counts::DropReason;

/// Where a lane's documents come from; `None`: nothing of that sort is led here, or no more.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) records: Option<mpsc::Receiver<Arc<Document>>>,
    /// Closes before that of records does: what becomes of an event is itself a record.
    pub(super) events: Option<mpsc::Receiver<Arc<Document>>>,
}

/// The queue. What a delivery has under way is no part of it.
#[derive(Debug)]
pub(super) struct Waiting {
    inbox: Inbox,
    queue: VecDeque<Arc<Document>>,
    most: usize,
    overflow: Overflow,
}

impl Waiting {
    pub(super) fn new(inbox: Inbox, most: usize, overflow: Overflow) -> Self {
        Self { inbox, queue: VecDeque::new(), most, overflow }
    }

    /// Whether an event waits, or may still come.
    pub(super) fn holds_events(&self) -> bool {
        self.inbox.events.is_some() || self.queue.iter().any(|it| it.signal.is_some())
    }

    /// The oldest documents, as many as there are up to `most`; none: something has ended. `None`: nothing is left, and nothing more can come.
    pub(super) async fn batch(&mut self, most: usize, books: &Books) -> Option<Vec<Arc<Document>>> {
        if self.queue.is_empty() {
            if !self.is_open() {
                return None;
            }
            self.receive(books).await;
        }
        // What has come meanwhile goes with it.
        for inbox in [&mut self.inbox.records, &mut self.inbox.events].into_iter().flatten() {
            while self.queue.len() < self.most.min(most)
                && let Ok(document) = inbox.try_recv()
            {
                self.queue.push_back(document);
            }
        }
        Some(self.queue.drain(..most.min(self.queue.len())).collect())
    }

    /// Does something else, and takes in what comes while that lasts.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>, books: &Books) -> T {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return done,
                () = self.receive(books), if self.is_open() => {}
            }
        }
    }

    /// Lets nothing more in, and gives what is left.
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

    /// Takes in one document, or notes that no more of a sort can come.
    async fn receive(&mut self, books: &Books) {
        let Inbox { records, events } = &mut self.inbox;
        let document = tokio::select! {
            document = next(records) => document,
            document = next(events) => document,
        };
        let Some(document) = document else { return };
        if self.queue.len() < self.most {
            self.queue.push_back(document);
            return;
        }
        let gives_way = match self.overflow {
            Overflow::DropNewest => Some(document),
            Overflow::DropOldest => {
                self.queue.push_back(document);
                self.queue.pop_front()
            }
        };
        if let Some(document) = gives_way {
            books.lost(&document, DropReason::Full, 0, None);
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
