//! Sinks against the real thing: an HTTPS server that checks its clients, a unix socket with a
//! listener that restarts, disks that fill. None of them delays an exit.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod answers;
#[expect(dead_code, reason = "shared with another suite, which uses the rest")]
#[path = "../routing/fakes.rs"]
mod fakes;
mod hung;
mod jsonl;
mod latency;
mod namespaces;
mod pki;
mod receiver;
mod routes;
mod fixture;
mod trust;
mod unix;
