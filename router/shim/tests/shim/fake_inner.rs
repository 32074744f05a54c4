//! An inner shim's Task service, of both versions, in its own runtime: it ends with its
//! connections, as a process does.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coroner_transport::Address;
use protobuf::Message as _;
use protobuf::UnknownValueRef;
use protobuf::well_known_types::empty::Empty;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use ttrpc::asynchronous::{MethodHandler, Server, Service, TtrpcContext};
use ttrpc::{Code, Request, Response};

pub(crate) const V2: &str = "containerd.task.v2.Task";
pub(crate) const V3: &str = "containerd.task.v3.Task";
/// The status that each process of this shim ends with.
pub(crate) const STATUS: u64 = 137;
pub(crate) const SECONDS: u64 = 1_600_000_000;
pub(crate) const NANOS: u64 = 123_456_789;
/// A field that no version has.
pub(crate) const UNKNOWN: (u32, u64) = (77, 5);
/// Larger than what the proxy inspects.
pub(crate) const LARGE: usize = 300_000;

/// A message of numbers and bytes, as any protobuf library would encode it.
pub(crate) fn message(numbers: &[(u32, u64)], bytes: &[(u32, &[u8])]) -> Vec<u8> {
    let mut message = Empty::new();
    for (number, value) in numbers {
        message.mut_unknown_fields().add_varint(*number, *value);
    }
    for (number, value) in bytes {
        message.mut_unknown_fields().add_length_delimited(*number, value.to_vec());
    }
    message.write_to_bytes().unwrap()
}

/// A number in a message.
pub(crate) fn number(message: &[u8], number: u32) -> Option<u64> {
    match Empty::parse_from_bytes(message).unwrap().unknown_fields().get(number) {
        Some(UnknownValueRef::Varint(value)) => Some(value),
        _ => None,
    }
}

/// Bytes in a message.
pub(crate) fn bytes(message: &[u8], number: u32) -> Vec<u8> {
    let parsed = Empty::parse_from_bytes(message).unwrap();
    let values = parsed.unknown_fields().iter().filter(|(found, _)| *found == number);
    values
        .filter_map(|(_, value)| match value {
            UnknownValueRef::LengthDelimited(bytes) => Some(bytes.to_vec()),
            _ => None,
        })
        .last()
        .unwrap_or_default()
}

pub(crate) struct FakeInner {
    runtime: Option<Runtime>,
    /// Whether its processes have ended.
    pub(crate) ended: watch::Sender<bool>,
    /// Whether calls of Start are answered.
    pub(crate) starts: watch::Sender<bool>,
    /// The methods that were called.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
}

struct FakeMethod {
    name: &'static str,
    ended: watch::Receiver<bool>,
    starts: watch::Receiver<bool>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl FakeInner {
    pub(crate) fn listen(socket: &Path) -> Self {
        let (ended, receiver) = watch::channel(false);
        let (starts, started) = watch::channel(true);
        let calls = Arc::new(Mutex::new(Vec::new()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let methods = || {
            ["Create", "Exec", "Start", "Wait", "State", "Delete", "Kill", "Stats", "Update"].map(|name| {
                let (ended, starts) = (receiver.clone(), started.clone());
                let handler = FakeMethod { name, ended, starts, calls: Arc::clone(&calls) };
                (name.to_owned(), Box::new(handler) as Box<dyn MethodHandler + Send + Sync>)
            })
        };
        let service = || Service { methods: HashMap::from(methods()), streams: HashMap::new() };
        let services = HashMap::from([(V2.to_owned(), service()), (V3.to_owned(), service())]);
        let address = Address::Unix(socket.to_owned());
        runtime.block_on(async {
            // Without a guard: shims take what containerd may send.
            let Address::Unix(path) = address else { unreachable!("made above") };
            let listener = coroner_transport::private(&path).unwrap();
            let mut server = Server::new().add_listener(listener).register_service(services);
            server.start().await.unwrap();
            // It stays for as long as the runtime.
            std::mem::forget(server);
        });
        Self { runtime: Some(runtime), ended, starts, calls }
    }

    pub(crate) fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeInner {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl MethodHandler for FakeMethod {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        self.calls.lock().unwrap().push(self.name.to_owned());
        let (id, exec) = (bytes(&request.payload, 1), bytes(&request.payload, 2));
        if id == b"wrong"
            || id == b"removed" && self.name == "Stats"
            || exec == b"unstartable" && self.name == "Start"
        {
            let status = ttrpc::get_status(Code::NOT_FOUND, "no such process");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        let ended = *self.ended.borrow();
        if self.name == "Start" {
            self.starts.clone().wait_for(|starts| *starts).await.unwrap();
        }
        let at = message(&[(1, SECONDS), (2, NANOS)], &[]);
        let pid = if exec.is_empty() || self.name == "Create" { 42 } else { 43 };
        let payload = match self.name {
            "Create" | "Start" => message(&[(1, pid)], &[]),
            "Wait" => {
                self.ended.clone().wait_for(|ended| *ended).await.unwrap();
                message(&[(1, STATUS), UNKNOWN], &[(2, &at)])
            }
            "State" if ended => {
                message(&[(3, pid), (4, 3), (9, STATUS), UNKNOWN], &[(1, &id), (10, &at), (11, &exec)])
            }
            "State" => message(&[(3, pid), (4, 2), UNKNOWN], &[(1, &id)]),
            "Delete" if id == b"never" => message(
                &[(1, pid), (2, STATUS)],
                &[(3, &message(&[(1, (-62_135_596_800_i64).cast_unsigned())], &[]))],
            ),
            "Delete" => message(&[(1, pid), (2, STATUS), UNKNOWN], &[(3, &at)]),
            "Stats" => vec![7; LARGE],
            "Update" => message(&[(1, request.payload.len() as u64)], &[]),
            _ => Vec::new(),
        };
        Ok(Response { payload, ..Default::default() })
    }
}
