//! A router that answers as it is told, and writes down what it was asked.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::address::Address;
use coroner_proto::shim::{
    HelloRequest, HelloResponse, ReleasedRequest, ReleasedResponse, RequestedRequest, RequestedResponse,
    RuleRequest, RuleResponse,
};
use coroner_proto::shim_ttrpc::{Shim, create_shim};
use coroner_proto::transport;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use ttrpc::asynchronous::{Server, TtrpcContext};

/// What is not heard by then never is.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it was asked.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) rules: Mutex<Vec<RuleRequest>>,
    pub(crate) released: Mutex<Vec<ReleasedRequest>>,
    pub(crate) requested: Mutex<Vec<RequestedRequest>>,
    news: Condvar,
    version: Mutex<u64>,
}

impl Heard {
    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let version = self.version.lock().unwrap();
        let (_version, late) = self.news.wait_timeout_while(version, PATIENCE, |_| !so(self)).unwrap();
        assert!(!late.timed_out(), "the router never heard: {what}");
    }

    fn add<T>(&self, to: &Mutex<Vec<T>>, item: T) {
        let mut version = self.version.lock().unwrap();
        to.lock().unwrap().push(item);
        *version += 1;
        self.news.notify_all();
    }
}

/// Runs while it is kept.
pub(crate) struct FakeRouter {
    pub(crate) heard: Arc<Heard>,
    /// A Rule is answered for each permit.
    pub(crate) rule: Arc<Semaphore>,
    /// Requested is answered while there is one.
    pub(crate) requested: Arc<Semaphore>,
    runtime: Option<Runtime>,
}

struct Answers {
    mode: &'static str,
    status: u32,
    heard: Arc<Heard>,
    rule: Arc<Semaphore>,
    requested: Arc<Semaphore>,
}

impl FakeRouter {
    /// Listens, and rules every end to be `status` once it is let. It ends as a process does, with its links: its runtime is its own.
    pub(crate) fn listen(socket: &Path, mode: &'static str, status: u32) -> Self {
        let (heard, rule) = (Arc::new(Heard::default()), Arc::new(Semaphore::new(0)));
        let requested = Arc::new(Semaphore::new(1));
        let answers = Answers {
            mode,
            status,
            heard: Arc::clone(&heard),
            rule: Arc::clone(&rule),
            requested: Arc::clone(&requested),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = transport::listen(&Address::Unix(socket.to_owned())).unwrap();
            let mut server =
                Server::new().add_listener(listener).register_service(create_shim(Arc::new(answers)));
            server.start().await.unwrap();
            std::mem::forget(server);
        });
        Self { heard, rule, requested, runtime: Some(runtime) }
    }

    /// Ends.
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
        self.heard.add(&self.heard.rules, request);
        self.rule.acquire().await.unwrap().forget();
        Ok(RuleResponse { status: self.status, ..Default::default() })
    }

    async fn released(&self, _: &TtrpcContext, request: ReleasedRequest) -> ttrpc::Result<ReleasedResponse> {
        self.heard.add(&self.heard.released, request);
        Ok(ReleasedResponse::default())
    }

    async fn requested(
        &self,
        _: &TtrpcContext,
        request: RequestedRequest,
    ) -> ttrpc::Result<RequestedResponse> {
        self.heard.add(&self.heard.requested, request);
        let _one = self.requested.acquire().await.unwrap();
        Ok(RequestedResponse::default())
    }
}
