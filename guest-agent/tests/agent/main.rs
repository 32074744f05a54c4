//! The agent on this machine's own kernel, as a reader sees it. Needs root: the tests fail without.
//!
//! The kills and exits are real, in scratch v1 memory cgroups. Cgroup v2 is imitated by files in a folder, which proves
//! how the agent reads them and not that a kernel writes them so: that is proven by the guest suite.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed, in its helpers too")]

mod exits;
mod harness;
mod imitated;
mod kata;
mod kills;
mod links;
mod pollers;
mod readers;
