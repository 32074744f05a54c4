//! containerd's end of a Task connection.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use ttrpc::asynchronous::Client;
use ttrpc::{Request, Response};

use crate::fake_inner::{V3, message};

/// Timeout of a call, in nanoseconds.
const PATIENCE: i64 = 30_000_000_000;

/// A connection.
pub(crate) struct Caller {
    runtime: Arc<Runtime>,
    client: Client,
    pub(crate) service: &'static str,
}

impl Caller {
    pub(crate) fn dial(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(Client::connect(&format!("unix://{}", socket.display()))).unwrap();
        Self { runtime: Arc::new(runtime), client, service: V3 }
    }

    /// Begins a call; `Begun::end` returns its answer.
    pub(crate) fn begin(&self, method: &str, payload: Vec<u8>) -> Begun {
        let (client, service, method) = (self.client.clone(), self.service.to_owned(), method.to_owned());
        let request = Request { service, method, payload, timeout_nano: PATIENCE, ..Default::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn_on(async move { client.request(request).await }, self.runtime.handle());
        Begun { runtime: Arc::clone(&self.runtime), tasks }
    }

    pub(crate) fn call(&self, method: &str, payload: Vec<u8>) -> ttrpc::Result<Response> {
        self.begin(method, payload).end()
    }

    /// A call about a process.
    pub(crate) fn of(&self, method: &str, id: &str, exec: &str) -> Vec<u8> {
        self.call(method, process(id, exec)).unwrap().payload
    }
}

/// An open call.
pub(crate) struct Begun {
    runtime: Arc<Runtime>,
    tasks: JoinSet<ttrpc::Result<Response>>,
}

impl Begun {
    pub(crate) fn end(mut self) -> ttrpc::Result<Response> {
        self.runtime.block_on(self.tasks.join_next()).unwrap().unwrap()
    }
}

/// A request's first two fields.
pub(crate) fn process(id: &str, exec: &str) -> Vec<u8> {
    let fields: &[(u32, &[u8])] = &[(1, id.as_bytes()), (2, exec.as_bytes())];
    message(&[], if exec.is_empty() { &fields[..1] } else { fields })
}
