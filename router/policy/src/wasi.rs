//! WASI for policies: a clock that shows the signal's time, random numbers seeded by the signal,
//! output to the log. No file, no network, no environment, no waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWrite;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime::{StoreContextMut, Trap};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::clocks::{HostMonotonicClock, HostWallClock};
use wasmtime_wasi::p2::bindings::random::{insecure, random};
use wasmtime_wasi::p2::{DynPollable, OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::limits::LOG_LINE;
use super::policy_log::CallLog;
use super::policy_log::LogLevel;
use coroner_core::signal::Moment;

/// Random bytes of one host call: a policy seeds its hash tables with them. Without this limit one
/// could have the host produce 64 MiB.
const RANDOM: u64 = 64 << 10;
/// Bytes per write to a stream.
const WRITE: usize = 4096;

/// Streams and clocks a policy holds at once. Without it a policy could have the router keep a
/// million of them.
const HANDLES: usize = 256;

/// A policy tried to wait.
#[derive(Debug, thiserror::Error)]
#[error("a policy cannot wait: its clock stands still while it rules")]
pub(super) struct Waited;

/// The WASI part of a policy's store.
pub(super) struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
    out: Output,
}

impl Wasi {
    /// Before the first call the clock shows the epoch's start.
    pub(super) fn new(lines: Arc<Mutex<CallLog>>) -> Self {
        let out = Output { lines, begun: Arc::default() };
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES);
        Self { ctx: context(&out, None), table, out }
    }

    /// Begins a call: what the policy sees of the world follows only from the signal's time and id.
    pub(super) fn begin(&mut self, world: Option<(Moment, &str)>) {
        self.ctx = context(&self.out, world);
    }

    /// Ends a call: a line without its line feed is written too.
    pub(super) fn end(&self) {
        self.out.end();
    }
}

impl WasiView for Wasi {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

fn context(out: &Output, world: Option<(Moment, &str)>) -> WasiCtx {
    let (at, id) = world.unzip();
    let wall = at.map_or(0, |at| at.wall_ms.unwrap_or(at.received_ms));
    let boot = at.and_then(|at| at.boot_ns).unwrap_or(0);
    let seed: [u8; 32] = Sha256::digest(id.unwrap_or_default()).into();
    let rng = Xoshiro256PlusPlus::from_seed(seed);
    WasiCtx::builder()
        .stdout(out.clone())
        .stderr(out.clone())
        .wall_clock(Still(wall))
        .monotonic_clock(Still(boot))
        .secure_random(rng.clone())
        .insecure_random(rng)
        .insecure_random_seed(u128::from_le_bytes(seed[..16].try_into().expect("16 of 32 bytes")))
        .max_random_size(RANDOM)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

/// A clock that stands still.
struct Still(u64);

impl HostWallClock for Still {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl HostMonotonicClock for Still {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        self.0
    }
}

/// Standard output and error, as log lines.
#[derive(Clone)]
struct Output {
    lines: Arc<Mutex<CallLog>>,
    /// A line without its line feed so far.
    begun: Arc<Mutex<Vec<u8>>>,
}

impl Output {
    fn take(&self, bytes: &[u8]) -> StreamResult<()> {
        let counted = self.lines.lock().unwrap_or_else(PoisonError::into_inner).count(bytes.len());
        counted.map_err(|flood| StreamError::Trap(flood.into()))?;
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' {
                self.line(&mut begun)?;
            } else if begun.len() < LOG_LINE {
                begun.push(byte);
            }
        }
        Ok(())
    }

    fn line(&self, begun: &mut Vec<u8>) -> StreamResult<()> {
        let text = String::from_utf8_lossy(begun).into_owned();
        begun.clear();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.write(LogLevel::Info, &text).map_err(|flood| StreamError::Trap(flood.into()))
    }

    fn end(&self) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !begun.is_empty() {
            // A flood was answered with a trap where it began; the rest is discarded.
            self.line(&mut begun).unwrap_or(());
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 needs this, and it is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE)
    }
}

/// Adds WASI 0.2 to a linker. Functions that open files or sockets are linked too, but components
/// that import them were refused before.
pub(super) fn link<T: WasiView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    // Timeouts do not reach into a host call: a call that waits could hold its worker without
    // limit.
    linker.allow_shadowing(true);
    let mut poll = linker.instance(POLL)?;
    poll.func_wrap("poll", |_, _: (Vec<Resource<DynPollable>>,)| -> wasmtime::Result<(Vec<u32>,)> {
        Err(Waited.into())
    })?;
    poll.func_wrap("[method]pollable.block", |_, _: (Resource<DynPollable>,)| -> wasmtime::Result<()> {
        Err(Waited.into())
    })?;
    // Fuel counts no work of the host: 64 KiB of random numbers would cost a dozen instructions.
    let mut instance = linker.instance(RANDOM_BYTES)?;
    instance.func_wrap("get-random-bytes", |mut store, (len,): (u64,)| -> wasmtime::Result<(Vec<u8>,)> {
        charge(&mut store, len)?;
        Ok((random::Host::get_random_bytes(store.data_mut().ctx().ctx.random(), len)?,))
    })?;
    let mut instance = linker.instance(INSECURE_BYTES)?;
    instance.func_wrap(
        "get-insecure-random-bytes",
        |mut store, (len,): (u64,)| -> wasmtime::Result<(Vec<u8>,)> {
            charge(&mut store, len)?;
            Ok((insecure::Host::get_insecure_random_bytes(store.data_mut().ctx().ctx.random(), len)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Takes a unit of fuel for each byte that a host call produces.
fn charge<T: 'static>(store: &mut StoreContextMut<'_, T>, bytes: u64) -> wasmtime::Result<()> {
    let left = store.get_fuel()?.checked_sub(bytes);
    store.set_fuel(left.unwrap_or(0))?;
    left.map(drop).ok_or_else(|| Trap::OutOfFuel.into())
}

const POLL: &str = "wasi:io/poll@0.2.12";
const RANDOM_BYTES: &str = "wasi:random/random@0.2.12";
const INSECURE_BYTES: &str = "wasi:random/insecure@0.2.12";
