//! Code generated from the protocols' `.proto` files: one copy for both ends.
//!
//! | module | file | between | page |
//! |---|---|---|---|
//! | [`agent`] | `agent.proto` | agent and router | docs/reference/agent-protocol.md |
//! | [`shim`] | `shim.proto` | a wrapped shim's Task proxy and the router | docs/operating/shims.md |
//! | [`kata`] | `kata.proto` | Kata's runtimes and their agent | docs/reference/agent-protocol.md |
//!
//! Links, addresses and frame limits are in the crate `coroner-transport`.

#[allow(missing_debug_implementations, clippy::all, clippy::unwrap_used, reason = "generated from the .proto files")]
#[rustfmt::skip]
mod generated;

pub use generated::{agent, agent_ttrpc, kata, kata_ttrpc, shim, shim_ttrpc};
