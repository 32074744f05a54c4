//! Whether a router listens, and answers, before a shim is handed over to it: one call, written out, with a bound on each step.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coroner_proto::shim::{HelloRequest, HelloResponse};
use protobuf::Message as _;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::config::Config;

/// Bytes of an answer: it holds two short texts.
const MOST: usize = 4096;
/// A ttrpc frame: length, stream, type, flags.
const HEADER: usize = 10;

/// Why a shim keeps containerd's own address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("the router's socket cannot be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("the router does not answer: {0}")]
    Silent(#[source] io::Error),
    #[error("the router's answer is none: {0}")]
    Odd(String),
    #[error("the router's source there is in mode \"{theirs}\", and the wrapper in mode \"{ours}\"")]
    Mode { theirs: String, ours: &'static str },
}

/// Asks.
pub(crate) fn ask(config: &Config) -> Result<(), ProbeError> {
    let until = Instant::now() + config.probe;
    let mut stream = dial(config, until).map_err(ProbeError::Connect)?;
    let payload = call(&mut stream, until).map_err(ProbeError::Silent)?;
    let odd = |error: protobuf::Error| ProbeError::Odd(error.to_string());
    let response = ttrpc::Response::parse_from_bytes(&payload).map_err(odd)?;
    if response.status.code() != ttrpc::Code::OK {
        return Err(ProbeError::Odd(response.status.message.clone()));
    }
    let hello = HelloResponse::parse_from_bytes(&response.payload).map_err(odd)?;
    if hello.mode != config.mode.name() {
        return Err(ProbeError::Mode { theirs: hello.mode, ours: config.mode.name() });
    }
    Ok(())
}

/// Of a router that hangs, connecting itself may wait: for room among those who wait to be accepted.
fn dial(config: &Config, until: Instant) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(left(until)))?;
    connect(&socket, &SocketAddrUnix::new(&config.socket)?)?;
    Ok(socket.into())
}

fn call(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let hello =
        HelloRequest { shim_version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloRequest::default() };
    let request = ttrpc::Request {
        service: "coroner.shim.v1.Shim".to_owned(),
        method: "Hello".to_owned(),
        payload: hello.write_to_bytes()?,
        ..ttrpc::Request::default()
    };
    let payload = request.write_to_bytes()?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend(length.to_be_bytes());
    frame.extend(1_u32.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend(payload);
    stream.write_all(&frame)?;
    let mut header = [0; HEADER];
    read(stream, &mut header, until)?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if header[8] != 2 || length > MOST {
        return Err(io::Error::other("that is no answer"));
    }
    let mut payload = vec![0; length];
    read(stream, &mut payload, until)?;
    Ok(payload)
}

fn read(stream: &mut UnixStream, bytes: &mut [u8], until: Instant) -> io::Result<()> {
    stream.set_read_timeout(Some(left(until)))?;
    stream.read_exact(bytes)
}

/// No time at all would be for ever.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
