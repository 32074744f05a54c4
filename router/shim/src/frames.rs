//! ttrpc's frames as bytes: whole frames to inspect, and large frames in pieces.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// u32 body length, u32 stream id (big-endian), u8 type, u8 flags: ttrpc's PROTOCOL.md.
const HEADER: usize = 10;
/// Larger bodies are never buffered: without a bound one large request would determine the size of
/// the proxy.
const MAX_BODY: usize = 64 << 10;
/// A large frame is copied in pieces of this size.
const PIECE: usize = 4 << 10;

/// ttrpc's types of frames that are inspected.
pub(crate) const REQUEST: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;

/// A frame as received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Header and body.
    Whole(Vec<u8>),
    /// The header only; [`Frames::pass`] reads the body.
    Large(Vec<u8>),
}

/// The stream id and type in a frame's header.
pub(crate) fn header(frame: &[u8]) -> (u32, u8) {
    match *frame {
        [_, _, _, _, a, b, c, d, kind, ..] => (u32::from_be_bytes([a, b, c, d]), kind),
        _ => (0, 0),
    }
}

/// The body of a whole frame.
pub(crate) fn body(frame: &[u8]) -> &[u8] {
    frame.get(HEADER..).unwrap_or_default()
}

/// A whole frame with another body.
pub(crate) fn with_body(frame: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(body.len())
        .expect("a buffered body is bounded, and one number in it can only be a little longer");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&frame[4..HEADER]);
    out.extend_from_slice(body);
    out
}

/// Reads frames off a stream.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    read: R,
    /// The received part of the current frame.
    buffer: Vec<u8>,
    filled: usize,
    /// Bytes of a large frame that are left to copy.
    rest: usize,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(read: R) -> Self {
        Self { read, buffer: Vec::new(), filled: 0, rest: 0 }
    }

    /// The next frame; `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let length = match *self.buffer {
                [a, b, c, d, ..] if self.filled >= HEADER => u32::from_be_bytes([a, b, c, d]) as usize,
                _ => 0,
            };
            let large = length > MAX_BODY;
            let want = HEADER + if large { 0 } else { length };
            if self.filled == want {
                self.filled = 0;
                let frame = std::mem::take(&mut self.buffer);
                if large {
                    self.rest = length;
                    return Ok(Some(Frame::Large(frame)));
                }
                return Ok(Some(Frame::Whole(frame)));
            }
            self.buffer.resize(want, 0);
            match self.read.read(&mut self.buffer[self.filled..]).await? {
                0 if self.filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.filled += read,
            }
        }
    }

    /// Copies a large frame.
    pub(crate) async fn pass(&mut self, header: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(header).await?;
        let mut piece = vec![0; PIECE];
        while self.rest > 0 {
            let most = self.rest.min(PIECE);
            let read = self.read.read(&mut piece[..most]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest -= read;
            to.write_all(&piece[..read]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 7, 2, 0]);
        bytes.extend((0..length).map(|at| (at % 251) as u8));
        bytes
    }

    #[tokio::test]
    async fn frames_split_anywhere_pass_unchanged() {
        let sent: Vec<u8> =
            [0, 1, 300, MAX_BODY, MAX_BODY + 1, 300_000, 7].into_iter().flat_map(frame).collect();
        for piece in [1, 7, 4096, 1 << 20] {
            let (mut near, far) = tokio::io::duplex(piece);
            let feed = async {
                for bytes in sent.chunks(piece) {
                    near.write_all(bytes).await.unwrap();
                }
                drop(near);
            };
            let read = async {
                let (mut frames, mut got, mut large) = (Frames::new(far), Vec::new(), 0);
                while let Some(frame) = frames.next().await.unwrap() {
                    match frame {
                        Frame::Whole(bytes) => {
                            assert_eq!(header(&bytes), (7, RESPONSE));
                            got.extend(bytes);
                        }
                        Frame::Large(header) => {
                            large += 1;
                            frames.pass(&header, &mut got).await.unwrap();
                        }
                    }
                }
                assert_eq!(large, 2);
                got
            };
            assert!(tokio::join!(feed, read).1 == sent, "{piece}");
        }
    }

    #[tokio::test]
    async fn truncated_frame_is_an_error() {
        for length in [1, 9, 10, 12] {
            let bytes = &frame(5)[..length];
            assert!(Frames::new(bytes).next().await.is_err(), "{length}");
        }
    }

    #[tokio::test]
    async fn next_is_cancel_safe() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut frames = Frames::new(far);
        for byte in &frame(5)[..14] {
            near.write_all(&[*byte]).await.unwrap();
            tokio::select! {
                biased;
                _ = frames.next() => panic!("it is not whole"),
                () = tokio::task::yield_now() => {}
            }
        }
        near.write_all(&frame(5)[14..]).await.unwrap();
        assert_eq!(frames.next().await.unwrap(), Some(Frame::Whole(frame(5))));
    }

    #[test]
    fn body_replaced_with_its_length() {
        assert_eq!(with_body(&frame(5), b"xyz"), b"\0\0\0\x03\0\0\0\x07\x02\0xyz");
    }
}
