//! Sinks against the real thing: an HTTPS server that checks who calls, a unix socket that goes and comes, disks that fill. None of them delays an exit.

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
mod stand;
mod trust;
mod unix;
