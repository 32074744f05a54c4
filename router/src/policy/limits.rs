//! What a policy may use, and how going past it is told from an honest trap.

use wasmtime::{ResourceLimiter, Trap};

use crate::ruling::FaultKind;

/// What one policy may use in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// wasm fuel of one `rule`. Without it a loop without end would hold every signal behind it.
    pub fuel: u64,
    /// Bytes of linear memory. Without it one policy could take the node's memory, and be the next OOM kill.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { fuel: 10_000_000, memory: 16 << 20 }
    }
}

impl Limits {
    /// Fuel to start with: instantiation, `describe` and `configure` run once and may build tables.
    pub(super) fn start_fuel(self) -> u64 {
        self.fuel.saturating_mul(10)
    }
}

/// wasm stack. A policy that recurses without end would else run into the worker's own stack guard.
pub(super) const STACK: usize = 512 << 10;
/// Bytes one call may hand to the host. Without it an answer of one huge list would be copied out of the
/// policy's memory before anybody looks at it.
pub(super) const ANSWER: usize = 1 << 20;
/// Table elements. Tables live in the router's memory and are not covered by the limit on linear memory.
const TABLE: usize = 10_000;
/// Log lines one call may write, and their length. Without it a policy could fill the node's journal.
pub(super) const LOG_LINES: u32 = 32;
/// Bytes of a log line.
pub(super) const LOG_LINE: usize = 1024;

/// Holds one store to its limits and remembers that one was hit.
#[derive(Debug)]
pub(super) struct Meter {
    memory: u64,
    pub(super) memory_hit: bool,
}

impl Meter {
    pub(super) fn new(limits: Limits) -> Self {
        Self { memory: limits.memory, memory_hit: false }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired as u64 <= self.memory {
            return Ok(true);
        }
        // A refusal would show in the policy as its own allocator's panic: an error here names the true cause.
        self.memory_hit = true;
        Err(wasmtime::Error::msg(format!("{desired} bytes of memory, over {}", self.memory)))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired <= TABLE {
            return Ok(true);
        }
        self.memory_hit = true;
        Err(wasmtime::Error::msg(format!("{desired} table elements, over {TABLE}")))
    }
}

/// Names what stopped a call.
pub(super) fn kind_of(error: &wasmtime::Error, meter: &Meter) -> FaultKind {
    if meter.memory_hit {
        return FaultKind::Memory;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => FaultKind::Fuel,
        Some(Trap::StackOverflow) => FaultKind::Stack,
        Some(_) => FaultKind::Trap,
        // No trap and no limit: the answer could not be lifted.
        None => FaultKind::Answer,
    }
}
