//! What the agent and the router say to each other: `coroner.agent.v1`, generated once for both ends.
//!
//! `agent.proto` is the text, docs/agent-protocol.md its page. [`transport`] opens links, and every link passes
//! the [`guard`], which closes it before an oversized frame is read. Beside it [`control`], what `coroner status` and
//! `coroner policy` ask a running router: `control.proto`, docs/cli.md; and [`kata`], the calls of Kata Containers' agent that concern
//! OOM kills: `kata.proto`; and [`shim`], what a wrapped shim's proxy asks the router: `shim.proto`, docs/shims.md.

pub mod address;
pub mod bucket;
pub mod guard;
pub mod limits;
pub mod transport;

#[allow(missing_debug_implementations, clippy::all, clippy::unwrap_used, reason = "generated from the .proto files")]
#[rustfmt::skip]
mod generated;

pub use generated::{agent, agent_ttrpc, control, control_ttrpc, kata, kata_ttrpc, shim, shim_ttrpc};
