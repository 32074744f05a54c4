//! How other parts ask the one that loads policies.

use tokio::sync::{mpsc, oneshot};
use wasmtime::component::Component;

use super::compile::CompileError;
use super::report::{Inspection, Listing, Promoted, Released, Reloaded};

/// Asks under way: each is one person's command, or one change of the directory.
const ASKS: usize = 16;

/// What the part that loads policies can be asked.
pub enum Ask {
    /// Look at the directory; answered when the chain is swapped or everything new was refused.
    Reload(oneshot::Sender<Reloaded>),
    /// The chain.
    List(oneshot::Sender<Listing>),
    /// One policy, by name; none of that name: `None`.
    Inspect(String, oneshot::Sender<Option<Inspection>>),
    /// Let a shadow policy's rulings count, although it had faults if `force`.
    Promote {
        /// Which.
        name: String,
        /// Although it had faults.
        force: bool,
        /// None of that name: `None`.
        answer: oneshot::Sender<Option<Promoted>>,
    },
    /// End a quarantine.
    Release(String, oneshot::Sender<Option<Released>>),
    /// The directory changed.
    Changed,
    /// A compiler has ended.
    Compiled {
        /// Of the component, hex.
        digest: String,
        /// What it made.
        outcome: Result<Component, CompileError>,
    },
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask").finish_non_exhaustive()
    }
}

/// The asking end. Every answer is `None` when the router is stopping.
#[derive(Clone, Debug)]
pub struct Policies(mpsc::Sender<Ask>);

impl Policies {
    /// Both ends.
    pub fn channel() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(ASKS);
        (Self(asks), asked)
    }

    /// Where the keeper's own helpers tell it what happened.
    pub(super) fn sender(&self) -> mpsc::Sender<Ask> {
        self.0.clone()
    }

    /// Looks at the directory now.
    pub async fn reload(&self) -> Option<Reloaded> {
        self.ask(Ask::Reload).await
    }

    /// The chain.
    pub async fn list(&self) -> Option<Listing> {
        self.ask(Ask::List).await
    }

    /// One policy.
    pub async fn inspect(&self, name: String) -> Option<Option<Inspection>> {
        self.ask(|answer| Ask::Inspect(name, answer)).await
    }

    /// Lets a shadow policy's rulings count.
    pub async fn promote(&self, name: String, force: bool) -> Option<Option<Promoted>> {
        self.ask(|answer| Ask::Promote { name, force, answer }).await
    }

    /// Ends a quarantine.
    pub async fn release(&self, name: String) -> Option<Option<Released>> {
        self.ask(|answer| Ask::Release(name, answer)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.0.send(ask(answer)).await.ok()?;
        answered.await.ok()
    }
}
