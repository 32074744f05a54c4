//! What an operator sets for policies: where they are, what each may use, and when one is put aside.

use std::path::PathBuf;
use std::time::Duration;

use super::limits::Limits;

/// The `[policies]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: the built-in default policy alone.
    pub directory: Option<PathBuf>,
    /// Look at the directory this often too.
    pub poll: Option<Duration>,
    /// Where compiled policies are kept; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Of a policy that sets none itself.
    pub limits: Limits,
    /// For the whole chain on one signal. Without it a chain of twenty slow policies would hold back every container of
    /// its worker by twenty times the limit of a call.
    pub signal: Duration,
    /// Bytes of a policy's file. Without it a stray disk image in the directory would be copied and hashed.
    pub file: u64,
    /// Core modules one policy is made of, and tables. Each costs the router memory that no other limit counts.
    pub instances: usize,
    /// Bytes of wasm stack. A policy that recurses without end would else run into the worker's own guard page.
    pub stack: usize,
    /// The process that compiles.
    pub compile: Compile,
    /// When a policy is put aside.
    pub quarantine: Quarantine,
    /// Every policy is in mode `shadow`.
    pub shadow_all: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: None,
            poll: None,
            cache: None,
            limits: Limits::default(),
            signal: Duration::from_millis(50),
            file: 32 << 20,
            instances: 100,
            stack: 512 << 10,
            compile: Compile::default(),
            quarantine: Quarantine::default(),
            shadow_all: false,
        }
    }
}

/// The process that compiles. A compiler meets a stranger's bytes with all its complexity, and takes memory that its process never
/// gives back: it runs apart, and may be killed.
#[derive(Clone, Debug)]
pub struct Compile {
    /// Bytes of address space.
    pub memory: u64,
    /// Time, and processor time.
    pub time: Duration,
    /// The `coroner` binary; `None`: nothing is compiled, only the cache is read.
    pub program: Option<PathBuf>,
}

impl Default for Compile {
    fn default() -> Self {
        Self { memory: 1 << 30, time: Duration::from_secs(60), program: None }
    }
}

/// When a policy is put aside, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Faults within `window`.
    pub faults: u32,
    /// How long a fault counts.
    pub window: Duration,
    /// Time burnt within ten seconds.
    pub burnt: Duration,
    /// The first quarantine; each further one is twice as long.
    pub shortest: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            faults: 5,
            window: Duration::from_secs(60),
            burnt: Duration::from_millis(500),
            shortest: Duration::from_secs(1),
            longest: Duration::from_secs(300),
        }
    }
}
