//! The agent on this machine's own kernel, as a reader sees it. Needs root: the tests fail without.
//!
//! The kills and exits are real, in scratch v1 memory cgroups. Cgroup v2 is imitated by files in a
//! folder, which proves how the agent reads them; the guest suite proves that a kernel writes them
//! so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod causes;
mod evidence;
mod exits;
mod faults;
mod harness;
mod imitated;
mod kata;
mod kills;
mod links;
mod memory;
mod pollers;
mod readers;
mod reports;
