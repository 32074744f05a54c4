//! The operator's settings for policies: paths, limits, and quarantine.

use std::path::PathBuf;
use std::time::Duration;

use super::limits::Limits;

/// The `[policies]` section of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: the built-in default is the only policy.
    pub directory: Option<PathBuf>,
    /// Additional poll interval of the directory.
    pub poll: Option<Duration>,
    /// Cache directory of compiled policies; `None`: no cache.
    pub cache: Option<PathBuf>,
    /// Default limits of a policy.
    pub limits: Limits,
    /// wasm fuel of all policies together for one signal, and of the shadow policies' draft the
    /// same. Without it a chain of a hundred slow policies would delay every container of its
    /// worker by a hundred times the fuel of a call.
    pub signal_fuel: u64,
    /// Processor time of the whole chain for one signal, the backstop behind `signal_fuel`.
    pub signal: Duration,
    /// Largest policy file, in bytes. Without it a stray disk image in the directory would be
    /// copied and hashed.
    pub file: u64,
    /// Core modules of one policy, and tables. Each costs the router memory that no other limit
    /// counts.
    pub instances: usize,
    /// Bytes of wasm stack. Without it a policy that recurses endlessly would reach the worker's
    /// own guard page.
    pub stack: usize,
    /// The compile process.
    pub compile: CompileSettings,
    /// When a policy is quarantined.
    pub quarantine: QuarantineSettings,
    /// Forces every policy into mode `shadow`.
    pub shadow_all: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: None,
            poll: None,
            cache: None,
            limits: Limits::default(),
            signal_fuel: 50_000_000,
            signal: Duration::from_secs(30),
            file: 32 << 20,
            instances: 100,
            stack: 512 << 10,
            compile: CompileSettings::default(),
            quarantine: QuarantineSettings::default(),
            shadow_all: false,
        }
    }
}

/// Settings of the compile process. A compiler parses untrusted bytes with all its complexity, and
/// takes memory that its process never returns: so it is a process of its own, which can be killed.
#[derive(Clone, Debug)]
pub struct CompileSettings {
    /// Bytes of address space.
    pub memory: u64,
    /// Timeout, and limit of processor time.
    pub time: Duration,
    /// Path of the `coroner` binary; `None`: nothing is compiled, only the cache is read.
    pub program: Option<PathBuf>,
}

impl Default for CompileSettings {
    fn default() -> Self {
        Self { memory: 1 << 30, time: Duration::from_secs(60), program: None }
    }
}

/// When a policy is quarantined, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantineSettings {
    /// Number of faults within `window`.
    pub faults: u32,
    /// How long a fault counts.
    pub window: Duration,
    /// Time burnt within ten seconds: a million units of fuel count as a millisecond.
    pub burnt: Duration,
    /// The first quarantine; each further one is twice as long.
    pub shortest: Duration,
    /// The longest quarantine.
    pub longest: Duration,
}

impl Default for QuarantineSettings {
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
