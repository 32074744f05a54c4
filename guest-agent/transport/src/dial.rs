//! Dials links. Each is guarded, whatever it runs over.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::asynchronous::transport::Socket;

use crate::address::Address;
use crate::guard::{Guard, Refused};
use crate::token_bucket::TokenBucket;

/// Rate limit on the frames of a guest: per second, and burst. Each frame costs the reader some
/// microseconds. Without a limit one guest that sends as fast as it can would occupy a processor.
/// Every legitimate frame answers one of the router's calls, of which there are a few a second.
const FRAMES_PER_SECOND: u32 = 250;
const FRAME_BURST: u32 = 1000;
/// Bytes of a monitor's answer to CONNECT: "OK" and a port that the monitor chose.
const MAX_CONNECT_ANSWER: usize = 64;

/// Dials a trusted peer.
pub async fn connect(address: &Address) -> io::Result<Socket> {
    Ok(match address {
        Address::Unix(path) => Socket::new(Guard::new(UnixStream::connect(path).await?)),
        Address::Vsock { cid, port } => Socket::new(Guard::new(vsock(*cid, *port).await?)),
        Address::Hvsock { path, port } => Socket::new(Guard::new(hybrid(path, *port).await?)),
    })
}

/// Dials a guest, which is not trusted: its frames are rate limited, and the flag reports a refused
/// frame.
pub async fn connect_guest(address: &Address) -> io::Result<(Socket, Refused)> {
    fn guarded<S>(stream: S) -> (Socket, Refused)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let guard = Guard::new(stream).rate_limited(TokenBucket::new(FRAMES_PER_SECOND, FRAME_BURST));
        let refused = guard.refused();
        (Socket::new(guard), refused)
    }
    Ok(match address {
        Address::Unix(path) => guarded(UnixStream::connect(path).await?),
        Address::Vsock { cid, port } => guarded(vsock(*cid, *port).await?),
        Address::Hvsock { path, port } => guarded(hybrid(path, *port).await?),
    })
}

async fn vsock(cid: u32, port: u32) -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(cid, port)).await
}

/// Dials a guest's port through its monitor: `CONNECT PORT`, answered by a line that begins with
/// `OK ` once the guest accepted. The stream ends or is reset if the guest is not up or nothing
/// listens on that port.
async fn hybrid(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_CONNECT_ANSWER);
    // One byte at a time: what follows the line is the guest's.
    while answer.last() != Some(&b'\n') {
        if answer.len() == MAX_CONNECT_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the monitor's answer is not a line"));
        }
        answer.push(stream.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::ConnectionReset,
                format!("nothing in the guest listens on port {port}"),
            ),
            _ => error,
        })?);
    }
    if answer.starts_with(b"OK ") {
        return Ok(stream);
    }
    let answer = String::from_utf8_lossy(&answer).trim_end().escape_debug().to_string();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the monitor answered `{answer}`")))
}
