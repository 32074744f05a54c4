//! The wrapper as containerd calls it, between a shim and a router that are stood in for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod bench;
mod caller;
mod fake_inner;
mod fake_router;
mod life;
mod proxied;
mod rulings;
mod wrapped;
