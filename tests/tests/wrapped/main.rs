//! Stock shims behind the router, on a real containerd and a real runc, in one containerd with stock pods.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod absence;
mod causal;
mod instant;
mod proxied;
mod stand;
mod truth;
