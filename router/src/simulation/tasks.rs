//! Tasks that are polled by hand, one at a time, in the order that the scheduler draws.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Whether a task can make progress.
#[derive(Debug)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One task of the router.
pub(super) struct PolledTask {
    pub(super) name: String,
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    waker: Waker,
}

impl fmt::Debug for PolledTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledTask").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PolledTask {
    pub(super) fn new(name: impl Into<String>, future: impl Future<Output = ()> + 'static) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        Self { name: name.into(), future: Box::pin(future), woken, waker }
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// Polls the task once. True: it has ended.
    pub(super) fn poll(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let poll = self.future.as_mut().poll(&mut Context::from_waker(&self.waker));
        matches!(poll, Poll::Ready(()))
    }
}
