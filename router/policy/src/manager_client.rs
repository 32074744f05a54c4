//! The client of the policy manager: requests over a channel.

use tokio::sync::{mpsc, oneshot};
use wasmtime::component::Component;

use super::compile::CompileError;
use super::report::{Inspection, Listing, Promoted, Released, Reloaded};

/// Requests in the channel: each is an operator's command, or a change of the directory.
const REQUESTS: usize = 16;

/// A request to the policy manager.
pub enum ManagerRequest {
    /// Reload the directory; answered when the chain is swapped or every new policy was refused.
    Reload(oneshot::Sender<Reloaded>),
    /// List the chain.
    List(oneshot::Sender<Listing>),
    /// Inspect one policy by name; `None`: there is no such policy.
    Inspect(String, oneshot::Sender<Option<Inspection>>),
    /// Enforce a shadow policy's rulings.
    Promote {
        /// Name of the policy.
        name: String,
        /// Promote it although it had faults.
        force: bool,
        /// `None`: there is no such policy.
        answer: oneshot::Sender<Option<Promoted>>,
    },
    /// End a quarantine.
    Release(String, oneshot::Sender<Option<Released>>),
    /// The directory changed.
    Changed,
    /// A compile process has ended.
    Compiled {
        /// Digest of the component, hex.
        digest: String,
        /// The compiled component, or the error.
        outcome: Result<Component, CompileError>,
    },
}

impl std::fmt::Debug for ManagerRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagerRequest").finish_non_exhaustive()
    }
}

/// The sending end. Every answer is `None` once the router is stopping.
#[derive(Clone, Debug)]
pub struct PolicyClient(mpsc::Sender<ManagerRequest>);

impl PolicyClient {
    /// Both ends of the channel.
    pub fn channel() -> (Self, mpsc::Receiver<ManagerRequest>) {
        let (requests, queue) = mpsc::channel(REQUESTS);
        (Self(requests), queue)
    }

    /// The channel for the manager's own helpers: watcher and compile pool.
    pub(super) fn sender(&self) -> mpsc::Sender<ManagerRequest> {
        self.0.clone()
    }

    /// Reloads the directory now.
    pub async fn reload(&self) -> Option<Reloaded> {
        self.request(ManagerRequest::Reload).await
    }

    /// Lists the chain.
    pub async fn list(&self) -> Option<Listing> {
        self.request(ManagerRequest::List).await
    }

    /// Inspects one policy.
    pub async fn inspect(&self, name: String) -> Option<Option<Inspection>> {
        self.request(|answer| ManagerRequest::Inspect(name, answer)).await
    }

    /// Enforces a shadow policy's rulings.
    pub async fn promote(&self, name: String, force: bool) -> Option<Option<Promoted>> {
        self.request(|answer| ManagerRequest::Promote { name, force, answer }).await
    }

    /// Ends a quarantine.
    pub async fn release(&self, name: String) -> Option<Option<Released>> {
        self.request(|answer| ManagerRequest::Release(name, answer)).await
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> ManagerRequest) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.ok()?;
        answered.await.ok()
    }
}
