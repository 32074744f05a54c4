//! A fake router: answers as configured, and records the requests.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::shim::{
    HelloRequest, HelloResponse, ReleasedRequest, ReleasedResponse, RequestedRequest, RequestedResponse,
    RuleRequest, RuleResponse,
};
use coroner_proto::shim_ttrpc::{Shim, create_shim};
use coroner_transport::Address;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use ttrpc::asynchronous::{Server, TtrpcContext};

/// Timeout until a request is received.
const PATIENCE: Duration = Duration::from_secs(30);

/// The received requests.
#[derive(Default)]
pub(crate) struct ReceivedRequests {
    pub(crate) rules: Mutex<Vec<RuleRequest>>,
    pub(crate) released: Mutex<Vec<ReleasedRequest>>,
    pub(crate) requested: Mutex<Vec<RequestedRequest>>,
    changed: Condvar,
    version: Mutex<u64>,
}

impl ReceivedRequests {
    /// Waits until the condition holds.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let version = self.version.lock().unwrap();
        let (_version, late) = self.changed.wait_timeout_while(version, PATIENCE, |_| !so(self)).unwrap();
        assert!(!late.timed_out(), "the router did not receive: {what}");
    }

    fn add<T>(&self, to: &Mutex<Vec<T>>, item: T) {
        let mut version = self.version.lock().unwrap();
        to.lock().unwrap().push(item);
        *version += 1;
        self.changed.notify_all();
    }
}

/// A fake router that runs until it is dropped.
pub(crate) struct FakeRouter {
    pub(crate) received: Arc<ReceivedRequests>,
    /// One Rule is answered for each permit.
    pub(crate) rule: Arc<Semaphore>,
    /// Requested is answered while a permit is available.
    pub(crate) requested: Arc<Semaphore>,
    runtime: Option<Runtime>,
}

struct Answers {
    mode: &'static str,
    status: u32,
    received: Arc<ReceivedRequests>,
    rule: Arc<Semaphore>,
    requested: Arc<Semaphore>,
}

impl FakeRouter {
    /// Listens, and rules every end to be `status` once it has a permit. It has its own runtime, so
    /// that it ends with its links, as a process does.
    pub(crate) fn listen(socket: &Path, mode: &'static str, status: u32) -> Self {
        let (received, rule) = (Arc::new(ReceivedRequests::default()), Arc::new(Semaphore::new(0)));
        let requested = Arc::new(Semaphore::new(1));
        let answers = Answers {
            mode,
            status,
            received: Arc::clone(&received),
            rule: Arc::clone(&rule),
            requested: Arc::clone(&requested),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = coroner_transport::listen(&Address::Unix(socket.to_owned())).unwrap();
            let mut server =
                Server::new().add_listener(listener).register_service(create_shim(Arc::new(answers)));
            server.start().await.unwrap();
            std::mem::forget(server);
        });
        Self { received, rule, requested, runtime: Some(runtime) }
    }

    /// Ends the router, with its links.
    pub(crate) fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeRouter {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl Shim for Answers {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let (mode, router_version) = (self.mode.to_owned(), "1".to_owned());
        Ok(HelloResponse { router_version, mode, ..Default::default() })
    }

    async fn rule(&self, _: &TtrpcContext, request: RuleRequest) -> ttrpc::Result<RuleResponse> {
        self.received.add(&self.received.rules, request);
        self.rule.acquire().await.unwrap().forget();
        Ok(RuleResponse { status: self.status, oom: Some(true), ..Default::default() })
    }

    async fn released(&self, _: &TtrpcContext, request: ReleasedRequest) -> ttrpc::Result<ReleasedResponse> {
        self.received.add(&self.received.released, request);
        Ok(ReleasedResponse::default())
    }

    async fn requested(
        &self,
        _: &TtrpcContext,
        request: RequestedRequest,
    ) -> ttrpc::Result<RequestedResponse> {
        self.received.add(&self.received.requested, request);
        let _one = self.requested.acquire().await.unwrap();
        Ok(RequestedResponse::default())
    }
}
