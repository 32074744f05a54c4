//! The limits of a policy, and the meter that holds one store to them.
//!
//! Fuel decides: the same call uses the same fuel on every machine, under any load. The time limits
//! are backstops, so far above what the fuel can take that a computing policy never reaches them.
//!
//! What a call can do that fuel does not count as an instruction, and what bounds it:
//!
//! - Bulk operations on memory and tables: the engine charges a unit for each byte or element.
//! - `memory.grow`: [`Limits::memory`] bounds the pages of an instance, and one page over it ends
//!   the call. Growing by nothing costs an instruction like any other.
//! - An answer: [`ANSWER`] bounds the bytes that are lifted from one call or host call.
//! - Log lines and WASI output: 1,000 lines and [`OUTPUT`] bytes of one call.
//! - Random bytes of WASI: a unit for each byte, as `wasi` charges them.
//! - Other host calls of WASI: constant work each, for the dozen instructions of the call; at most
//!   256 handles.
//! - Strings between the components of one composed file: the engine copies them uncounted. The
//!   memory limit bounds each copy, and only the time limit their number.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// The limits of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// wasm fuel of one `rule`. Without it an endless loop would block every signal behind it.
    pub fuel: u64,
    /// Bytes of linear memory of one instance, all its memories together. Without it one policy
    /// could take the node's memory, and cause the next OOM kill.
    pub memory: u64,
    /// Processor time of one `rule`, the backstop behind fuel: it ends what fuel does not count.
    /// All the fuel takes 0.1 s on a slow processor and 1 s on an emulated one.
    pub call: Duration,
    /// The same to start, describe and configure an instance.
    pub configure: Duration,
    /// Table elements, all tables together. Tables are in the router's memory, and linear memory
    /// does not count them.
    pub table_elements: usize,
    /// Log rate limit, lines a second. Without it a policy could fill the node's journal and push
    /// out the lines of others.
    pub log_rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel: 10_000_000,
            memory: 16 << 20,
            call: Duration::from_secs(10),
            configure: Duration::from_secs(30),
            table_elements: 10_000,
            log_rate: 20,
        }
    }
}

impl Limits {
    /// Fuel of instantiation, of `describe` and of `configure`, each: they run once and may build
    /// tables. It does not shrink with `fuel`, so that a strict limit of calls does not prevent the
    /// start.
    pub(super) fn start_fuel(self) -> u64 {
        self.fuel.saturating_mul(100).max(START_FUEL)
    }
}

/// Least fuel of the start: about a second of an ordinary processor.
const START_FUEL: u64 = 1_000_000_000;

/// What one call may use, where its chain leaves it less than its own limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallBudget {
    /// wasm fuel.
    pub(super) fuel: u64,
    /// Processor time.
    pub(super) time: Duration,
}

impl CallBudget {
    /// No less than the policy's own limits.
    pub(super) const OWN: Self = Self { fuel: u64::MAX, time: Duration::MAX };
}

/// Bytes one call may pass to the host. Without it an answer of one huge list would be copied out
/// of the policy's memory before it is checked.
pub(super) const ANSWER: usize = 1 << 20;
/// Bytes of log lines and WASI output of one call: four times what its lines can hold. Without it a
/// policy could have the host copy a megabyte for every dozen instructions.
pub(super) const OUTPUT: usize = 4 << 20;
/// Bytes of a log line.
pub(super) const LOG_LINE: usize = 1024;

/// Enforces the limits of one store and remembers which one was reached.
#[derive(Debug)]
pub(super) struct Meter {
    memory: u64,
    memory_used: u64,
    table_elements: usize,
    table_used: usize,
    instances: usize,
    pub(super) memory_hit: bool,
}

impl Meter {
    pub(super) fn new(limits: Limits, instances: usize) -> Self {
        Self {
            memory: limits.memory,
            memory_used: 0,
            table_elements: limits.table_elements,
            table_used: 0,
            instances,
            memory_hit: false,
        }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.memory_used.saturating_add(desired.saturating_sub(current) as u64);
        if used <= self.memory {
            self.memory_used = used;
            return Ok(true);
        }
        // A refusal would appear as a panic of the policy's own allocator: this error names the
        // true cause.
        self.memory_hit = true;
        Err(wasmtime::Error::msg(format!("{used} bytes of memory, over {}", self.memory)))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.table_used.saturating_add(desired.saturating_sub(current));
        if used <= self.table_elements {
            self.table_used = used;
            return Ok(true);
        }
        self.memory_hit = true;
        Err(wasmtime::Error::msg(format!("{used} table elements, over {}", self.table_elements)))
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn tables(&self) -> usize {
        self.instances
    }

    fn memories(&self) -> usize {
        self.instances
    }
}
