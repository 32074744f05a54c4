//! A signal as it is kept: in the bytes it goes over the link in. Decoded, each would take five times as much.

use coroner_proto::agent::Signal;
use protobuf::Message as _;

#[derive(Debug)]
pub(crate) struct Packed {
    seq: u64,
    bytes: Box<[u8]>,
}

impl Packed {
    pub(crate) fn new(signal: &Signal) -> Self {
        let bytes = signal.write_to_bytes().expect("a message without required fields, in memory");
        Self { seq: signal.seq, bytes: bytes.into_boxed_slice() }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Bytes as one of an answer's signals: its tag, its length and itself.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + 6
    }

    /// As they go over the link.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn open(&self) -> Signal {
        Signal::parse_from_bytes(&self.bytes).expect("written by `new`")
    }
}
