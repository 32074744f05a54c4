//! Runs the real binaries against a real containerd, and ends everything it started.
//!
//! ```text
//!   containerd::Containerd ----> cri::Cri (pods, containers) ---> outcome::Reading ("OOMKilled/137")
//!        |        |  ^
//!        |        |  +---------- router::Router <--- agent::Agent
//!        |        +------------> events::Events (what was published, in order)
//!   scratch::Scratch: one folder, one cgroup, one name per run; swept when its owner is dead
//! ```
//!
//! The order to read it in: `containerd`, `cri` and `pods` are what a suite drives, `router` and
//! `agent` are what it tests, the rest is below them. `root` is another Debian for containerd to be
//! of; `variant`, `load` and `times` are for what is counted and measured. `vm` is a guest with a
//! kernel of its own, from an `initramfs` made here; `node` is a machine with systemd. Needs root,
//! containerd, runc and gcc; an error names the one that is missing.

pub mod agent;
pub mod variant;
pub mod binary;
pub mod containerd;
pub mod cri;
pub mod events;
pub mod guests;
pub mod image;
pub mod initramfs;
pub mod load;
pub mod node;
pub mod outcome;
pub mod page;
pub mod pods;
pub mod process;
pub mod program;
pub mod report;
pub mod root;
pub mod router;
pub mod scratch;
pub mod sweep;
pub mod times;
pub mod vm;
pub mod wait;
