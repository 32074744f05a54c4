//! The limits of a policy, and the meter that holds one store to them.

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
    /// Processor time of one `rule`. Fuel decides first; this ends what fuel does not count, such
    /// as a host call. Five times as long may elapse.
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
            call: Duration::from_millis(20),
            configure: Duration::from_secs(1),
            table_elements: 10_000,
            log_rate: 20,
        }
    }
}

impl Limits {
    /// Fuel for the start: instantiation, `describe` and `configure` run once and may build tables.
    /// The timeout limits them: a second of wasm is some billions.
    pub(super) fn start_fuel(self) -> u64 {
        self.fuel.saturating_mul(1000)
    }
}

/// Bytes one call may pass to the host. Without it an answer of one huge list would be copied out
/// of the policy's memory before it is checked.
pub(super) const ANSWER: usize = 1 << 20;
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
