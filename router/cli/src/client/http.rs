//! The client of the admin server: HTTP over the control socket, with a time limit on each answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coroner::node::admin::Refusal;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::{FAILED, WRONG};

/// A router that has not answered by then hangs.
const ANSWER: Duration = Duration::from_secs(5);
/// A reload waits for compilers, which have a minute by default.
const SLOW: Duration = Duration::from_secs(180);

/// Exit code and message.
pub(super) type Failure = (u8, String);

/// One request.
pub(super) struct Call {
    method: Method,
    path: String,
    body: String,
    slow: bool,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: String::new(), slow: false }
    }

    /// A request that compiles policies.
    pub(super) fn slow(path: impl Into<String>) -> Self {
        Self { slow: true, ..Self::new(Method::POST, path) }
    }

    pub(super) fn with(self, body: String) -> Self {
        Self { body, ..self }
    }
}

/// A connection to a running router.
pub(super) struct Client {
    path: PathBuf,
    owner: String,
    sender: SendRequest<Full<Bytes>>,
    /// The task that reads and writes; it ends with the client.
    _connection: JoinSet<()>,
}

impl Client {
    pub(super) async fn connect(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &io::Error| (FAILED, unreachable(path, error));
        let stream = UnixStream::connect(path).await.map_err(|error| failed(&error))?;
        let owner = stream.peer_cred().map_or_else(|_| "an unknown process".to_owned(), |it| owner(&it));
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| (FAILED, format!("cannot connect to {}: {error}", path.display())))?;
        // An error of the connection is one of the request that is under way.
        let mut task = JoinSet::new();
        task.spawn(async { drop(connection.await) });
        Ok(Self { path: path.to_owned(), owner, sender, _connection: task })
    }

    /// The body of a successful response.
    pub(super) async fn call(&mut self, call: Call) -> Result<String, Failure> {
        let mut limit = ANSWER;
        if call.slow {
            // A router that hangs shows here; one that compiles may take its time.
            self.within(ANSWER, Call::get("/live")).await?;
            limit = SLOW;
        }
        self.within(limit, call).await
    }

    async fn within(&mut self, limit: Duration, call: Call) -> Result<String, Failure> {
        let answer = async {
            let response = send(&mut self.sender, call).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).trim_end().to_owned()))
        };
        let (status, text) = match timeout(limit, answer).await {
            Err(_) => return Err(self.silent(limit)),
            Ok(answer) => answer.map_err(|error: hyper::Error| self.broken(&error))?,
        };
        if status.is_success() { Ok(text) } else { Err(refused(status, &text)) }
    }

    /// The body of a response that goes on.
    pub(super) async fn open(&mut self, path: &str) -> Result<Incoming, Failure> {
        let response = match timeout(ANSWER, send(&mut self.sender, Call::get(path))).await {
            Err(_) => return Err(self.silent(ANSWER)),
            Ok(response) => response.map_err(|error| self.broken(&error))?,
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
        Err(refused(status, &String::from_utf8_lossy(&body.to_bytes())))
    }

    fn silent(&self, limit: Duration) -> Failure {
        let (path, owner, limit) = (self.path.display(), &self.owner, limit.as_secs());
        (FAILED, format!("no answer from {path} within {limit} s; the socket belongs to {owner}"))
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        let (path, owner) = (self.path.display(), &self.owner);
        (FAILED, format!("the router closed the connection: {error} ({path} belongs to {owner})"))
    }
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, call: Call) -> Result<Response<Incoming>, hyper::Error> {
    let request = Request::builder().method(call.method).uri(call.path).header(HOST, "localhost");
    let request = request.body(Full::from(call.body)).expect("paths are encoded");
    sender.send_request(request).await
}

/// The lines of a response that goes on.
pub(super) struct Lines {
    body: Incoming,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, rest: Vec::new() }
    }

    /// The next whole lines; `None` at the end of the response.
    pub(super) async fn next(&mut self, client: &Client) -> Result<Option<Vec<String>>, Failure> {
        loop {
            let frame = match timeout(ANSWER, self.body.frame()).await {
                Err(_) => return Err(client.silent(ANSWER)),
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| client.broken(&error))?,
            };
            self.rest.extend_from_slice(&frame.into_data().unwrap_or_default());
            if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                let begun = self.rest.split_off(end + 1);
                let lines = String::from_utf8_lossy(&self.rest).lines().map(str::to_owned).collect();
                self.rest = begun;
                return Ok(Some(lines));
            }
        }
    }
}

/// Bytes of a path's segment or a query's value that stand for themselves (RFC 3986, unreserved).
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

fn unreachable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no router answers at {path}: is it running? (--socket or CORONER_SOCKET names another)")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{path} is for root and the router's own user alone: try it with sudo")
        }
        _ => format!("cannot connect to {path}: {error}"),
    }
}

/// The process that listens, as the kernel knows it (SO_PEERCRED): with socket activation the
/// service manager.
fn owner(process: &UCred) -> String {
    let uid = process.uid();
    let Some(pid) = process.pid() else { return format!("uid {uid}") };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = if name.is_empty() { "gone" } else { name.trim_end() };
    format!("pid {pid} ({name}), uid {uid}")
}

/// A response that is not a success.
fn refused(status: StatusCode, text: &str) -> Failure {
    let code = if status.is_client_error() { WRONG } else { FAILED };
    match serde_json::from_str::<Refusal>(text) {
        Ok(Refusal { error, hint }) => (code, format!("{error}; {hint}")),
        Err(_) => (FAILED, format!("the router answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_slash_encoded_as_one_segment() {
        assert_eq!(encode("50-my policy/ä"), "50-my%20policy%2F%C3%A4");
        assert_eq!(encode("00-kubernetes.v1_2~"), "00-kubernetes.v1_2~");
    }
}
