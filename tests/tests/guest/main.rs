//! Guests with a kernel of their own, cgroup v2 and a real virtio-vsock.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod cases;
mod proxy;
mod reader;
mod routed;
#[path = "../routing/shim.rs"]
mod shim;
mod shimmed;
mod small;
mod truth;
