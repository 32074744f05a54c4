//! A stored signal in its wire encoding. Decoded, it would take five times the memory.

use coroner_proto::agent::Signal;
use protobuf::Message as _;

#[derive(Debug)]
pub(crate) struct EncodedSignal {
    seq: u64,
    bytes: Box<[u8]>,
}

impl EncodedSignal {
    pub(crate) fn new(signal: &Signal) -> Self {
        let bytes = signal
            .write_to_bytes()
            .expect("encoding to memory fails only for missing required fields, and there are none");
        Self { seq: signal.seq, bytes: bytes.into_boxed_slice() }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Bytes as an element of an answer's signals: tag, length and message.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + 6
    }

    /// The wire encoding.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn decode(&self) -> Signal {
        Signal::parse_from_bytes(&self.bytes).expect("encoded by `new`")
    }
}
