//! Frame guard: checks every frame's header before its body is read, and closes the link at an
//! oversized one.
//! The field's name: frame size limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::MAX_FRAME;
use crate::token_bucket::TokenBucket;

/// u32 body length, u32 stream id (big-endian), u8 type, u8 flags: ttrpc's PROTOCOL.md.
const HEADER: usize = 10;

/// A byte stream that refuses incoming ttrpc frames longer than [`MAX_FRAME`].
///
/// The header of an oversized frame is not passed on, so the reader allocates nothing for it.
#[derive(Debug)]
pub struct Guard<S> {
    inner: S,
    header: [u8; HEADER],
    /// Header bytes read from the stream, and of those passed on. Nothing is passed on before all
    /// are read.
    filled: usize,
    passed: usize,
    /// Body bytes still to come.
    body: usize,
    refused: Refused,
    rate: Option<FrameRate>,
    /// Dropped when the peer ends the stream, or with the guard: the receiver resolves then.
    ended: Option<oneshot::Sender<()>>,
}

/// Whether a guard has refused a frame. ttrpc, which reads from the guard, drops the error itself.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<AtomicBool>);

impl Refused {
    /// True once a frame was refused.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Rate limit on frames. Frames above the rate wait in the kernel's buffer (back-pressure).
#[derive(Debug)]
struct FrameRate {
    frames: TokenBucket,
    /// The token of the last frame is not acquired yet: the next frame waits for it.
    token_due: bool,
    until: Option<Pin<Box<Sleep>>>,
}

impl FrameRate {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.token_due {
            if let Some(until) = &mut self.until {
                ready!(until.as_mut().poll(cx));
                self.until = None;
            }
            let now = Instant::now();
            match self.frames.take(1, now) {
                Ok(()) => self.token_due = false,
                Err(wait) => self.until = Some(Box::pin(sleep_until(now + wait))),
            }
        }
        Poll::Ready(())
    }
}

impl<S> Guard<S> {
    /// Guards a stream that is at the start of a frame.
    pub fn new(inner: S) -> Self {
        let refused = Refused::default();
        Self { inner, header: [0; HEADER], filled: 0, passed: 0, body: 0, refused, rate: None, ended: None }
    }

    /// Limits the rate at which frames are read.
    #[must_use]
    pub fn rate_limited(mut self, frames: TokenBucket) -> Self {
        self.rate = Some(FrameRate { frames, token_due: false, until: None });
        self
    }

    /// Returns a flag that is set when a frame is refused. It outlives the guard.
    pub fn refused(&self) -> Refused {
        self.refused.clone()
    }

    /// Returns a receiver that resolves (with an error) when the peer ends the stream or the guard
    /// is dropped.
    pub fn ended(&mut self) -> oneshot::Receiver<()> {
        let (sender, ended) = oneshot::channel();
        self.ended = Some(sender);
        ended
    }

    fn refuse(&mut self, length: usize) -> io::Error {
        self.refused.0.store(true, Ordering::Relaxed);
        let message = format!("frame of {length} bytes exceeds the limit of {MAX_FRAME}: link closed");
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refused.get() || buf.remaining() == 0 {
            // After a refusal the reader gets the end of the stream.
            return Poll::Ready(Ok(()));
        }
        if this.body == 0 && this.passed == this.filled {
            (this.filled, this.passed) = (0, 0);
        }
        if this.body == 0 {
            if let (0, Some(rate)) = (this.filled, &mut this.rate) {
                ready!(rate.poll(cx));
            }
            while this.filled < HEADER {
                let mut part = ReadBuf::new(&mut this.header[this.filled..]);
                if let Err(error) = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part)) {
                    this.ended = None;
                    return Poll::Ready(Err(error));
                }
                match part.filled().len() {
                    0 => {
                        this.ended = None;
                        return Poll::Ready(Ok(()));
                    }
                    read => this.filled += read,
                }
            }
            let [a, b, c, d, ..] = this.header;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > MAX_FRAME {
                return Poll::Ready(Err(this.refuse(length)));
            }
            if this.passed < HEADER {
                let some = buf.remaining().min(HEADER - this.passed);
                buf.put_slice(&this.header[this.passed..this.passed + some]);
                this.passed += some;
                if this.passed == HEADER {
                    this.body = length;
                    (this.filled, this.passed) = (0, 0);
                    if let Some(rate) = &mut this.rate {
                        rate.token_due = true;
                    }
                }
                return Poll::Ready(Ok(()));
            }
        }
        let most = buf.remaining().min(this.body);
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        this.body -= read;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
        bytes.extend((0..length).map(|at| (at % 251) as u8));
        bytes
    }

    /// Feeds `sent` in pieces of `piece` bytes, reads in pieces of `reads`, and returns what came
    /// through.
    async fn through(sent: Vec<u8>, piece: usize, reads: usize) -> (Vec<u8>, Option<io::Error>) {
        let (mut near, far) = tokio::io::duplex(piece);
        let mut guard = Guard::new(far);
        let feed = async move {
            // The guard stops reading when it refuses a frame: later writes fail.
            for bytes in sent.chunks(piece) {
                if near.write_all(bytes).await.is_err() {
                    return;
                }
            }
        };
        let read = async move {
            let (mut got, mut buffer) = (Vec::new(), vec![0; reads]);
            loop {
                match guard.read(&mut buffer).await {
                    Ok(0) => return (got, None),
                    Ok(count) => got.extend_from_slice(&buffer[..count]),
                    Err(error) => return (got, Some(error)),
                }
            }
        };
        tokio::join!(feed, read).1
    }

    #[tokio::test]
    async fn frames_pass_unchanged_at_any_split() {
        let sent: Vec<u8> = [0, 1, 300, MAX_FRAME, 7].into_iter().flat_map(frame).collect();
        for (piece, reads) in [(1, 1), (3, 64), (7, 3), (4096, 10), (1 << 17, 1 << 17)] {
            let (got, error) = through(sent.clone(), piece, reads).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(got.len(), sent.len(), "{piece} {reads}");
            assert_eq!(got, sent);
        }
    }

    #[tokio::test]
    async fn frames_above_rate_wait() {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let mut guard = Guard::new(far).rate_limited(TokenBucket::new(100, 5));
        for _ in 0..25 {
            near.write_all(&frame(3)).await.unwrap();
        }
        let begun = Instant::now();
        let mut all = vec![0; 25 * 13];
        guard.read_exact(&mut all).await.unwrap();
        assert_eq!(all, frame(3).repeat(25));
        // 20 frames above the burst, without the wait for the last: a lower bound on any machine.
        assert!(begun.elapsed().as_millis() >= 185, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn ended_resolves_on_drop_and_on_peer_close() {
        let mut guard = Guard::new(tokio::io::duplex(1).1);
        let ended = guard.ended();
        drop(guard);
        assert!(ended.await.is_err());
        let (near, far) = tokio::io::duplex(1);
        let mut guard = Guard::new(far);
        let ended = guard.ended();
        drop(near);
        assert_eq!(guard.read(&mut [0]).await.unwrap(), 0);
        assert!(ended.await.is_err(), "although the guard is kept");
    }

    #[tokio::test]
    async fn oversized_frame_closes_link_before_its_header_passes() {
        let mut sent = frame(5);
        sent.extend(frame(MAX_FRAME + 1));
        for (piece, reads) in [(1, 1), (7, 3), (1 << 17, 1 << 17)] {
            let (got, error) = through(sent.clone(), piece, reads).await;
            assert_eq!(got, frame(5));
            assert_eq!(error.map(|it| it.kind()), Some(io::ErrorKind::InvalidData));
        }
    }
}
