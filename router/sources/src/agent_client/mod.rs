//! The agent's client: one connection, its RPCs with their timeouts, and the handshake.

pub(crate) mod conn;
pub(crate) mod handshake;
pub(crate) mod rpc;
