//! A router that answers as it is told, and writes down what it was asked.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coroner_proto::address::Address;
use coroner_proto::shim::{
    HelloRequest, HelloResponse, ReleasedRequest, ReleasedResponse, RequestedRequest, RequestedResponse,
    RuleRequest, RuleResponse,
};
use coroner_proto::shim_ttrpc::{Shim, create_shim};
use coroner_proto::transport;
use tokio::sync::{Notify, Semaphore};
use ttrpc::asynchronous::{Server, TtrpcContext};

/// What it was asked.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) rules: Mutex<Vec<RuleRequest>>,
    pub(crate) released: Mutex<Vec<ReleasedRequest>>,
    pub(crate) requested: Mutex<Vec<RequestedRequest>>,
    news: Notify,
}

impl Heard {
    /// Waits until something is so.
    pub(crate) async fn until(&self, so: impl Fn(&Self) -> bool) {
        let all = async {
            loop {
                let news = self.news.notified();
                if so(self) {
                    return;
                }
                news.await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("the router hears of it");
    }
}

/// Runs while it is kept.
pub(crate) struct FakeRouter {
    pub(crate) heard: Arc<Heard>,
    /// A Rule is answered for each permit.
    pub(crate) rule: Arc<Semaphore>,
    server: Option<Server>,
}

struct Answers {
    mode: &'static str,
    status: u32,
    heard: Arc<Heard>,
    rule: Arc<Semaphore>,
}

impl FakeRouter {
    /// Listens, and rules every end to be `status` once it is let.
    pub(crate) async fn listen(socket: &Path, mode: &'static str, status: u32) -> Self {
        let (heard, rule) = (Arc::new(Heard::default()), Arc::new(Semaphore::new(0)));
        let answers = Answers { mode, status, heard: Arc::clone(&heard), rule: Arc::clone(&rule) };
        let listener = transport::listen(&Address::Unix(socket.to_owned())).unwrap();
        let mut server =
            Server::new().add_listener(listener).register_service(create_shim(Arc::new(answers)));
        server.start().await.unwrap();
        Self { heard, rule, server: Some(server) }
    }

    /// Ends, with its links.
    pub(crate) async fn end(mut self) {
        if let Some(mut server) = self.server.take() {
            server.shutdown().await.ok();
        }
    }
}

#[async_trait]
impl Shim for Answers {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let (mode, router_version) = (self.mode.to_owned(), "1".to_owned());
        Ok(HelloResponse { router_version, mode, ..Default::default() })
    }

    async fn rule(&self, _: &TtrpcContext, request: RuleRequest) -> ttrpc::Result<RuleResponse> {
        self.heard.rules.lock().unwrap().push(request);
        self.heard.news.notify_waiters();
        self.rule.acquire().await.unwrap().forget();
        Ok(RuleResponse { status: self.status, ..Default::default() })
    }

    async fn released(&self, _: &TtrpcContext, request: ReleasedRequest) -> ttrpc::Result<ReleasedResponse> {
        self.heard.released.lock().unwrap().push(request);
        self.heard.news.notify_waiters();
        Ok(ReleasedResponse::default())
    }

    async fn requested(
        &self,
        _: &TtrpcContext,
        request: RequestedRequest,
    ) -> ttrpc::Result<RequestedResponse> {
        self.heard.requested.lock().unwrap().push(request);
        self.heard.news.notify_waiters();
        Ok(RequestedResponse::default())
    }
}
