//! The wrapper as containerd calls it, between a fake inner shim and a fake router.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod fixture;
mod caller;
mod fake_inner;
mod fake_router;
mod life;
mod proxied;
mod rulings;
mod wrapped;
