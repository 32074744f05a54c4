//! How a containerd differs from this machine's stock one.

use std::env::{self, VarError};

use anyhow::{Context, Result};

/// The CRI runtime handler of pods with the stock shim.
pub const STOCK: &str = "runc";
/// The CRI runtime handler of pods with a wrapped shim.
pub const WRAPPED: &str = "coroner";

/// Names the containerd that every suite on the host runs instead of its own choice: `host`,
/// `trixie`, or a version that `cargo xtask next VERSION` has built.
const OVERRIDE: &str = "CORONER_TEST_CONTAINERD";

/// The origin of containerd, ctr and the shim of runc.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Release {
    /// This machine's packages.
    #[default]
    Host,
    /// Debian trixie's: containerd 1.7, with its own runc. `cargo xtask next trixie` gets it.
    Trixie,
    /// Upstream's release of this version, with this machine's runc. `cargo xtask next VERSION`
    /// builds it.
    Upstream(String),
}

impl Release {
    /// The newest one: a folder in tests/programs/containerd, which the gate builds.
    pub fn newest() -> Self {
        Self::Upstream("2.4.2".to_owned())
    }

    /// The release that the environment names.
    pub(super) fn of_environment() -> Result<Option<Self>> {
        match env::var(OVERRIDE) {
            Ok(name) => Ok(Some(match name.as_str() {
                "host" => Self::Host,
                "trixie" => Self::Trixie,
                _ => Self::Upstream(name),
            })),
            Err(VarError::NotPresent) => Ok(None),
            Err(error) => Err(error).context(OVERRIDE),
        }
    }
}

/// What a containerd is started with. The default is this machine's, with the stock shim alone.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    pub(super) release: Release,
    shim: Option<String>,
    handlers: Vec<String>,
}

impl Setting {
    /// The same with another release's binaries.
    #[must_use]
    pub fn of(mut self, release: Release) -> Self {
        self.release = release;
        self
    }

    /// The same with a second handler, `coroner`, that runs the wrapper. `toml` is the wrapper's
    /// configuration, in which `@DIR@` stands for containerd's folder.
    #[must_use]
    pub fn wrapped(mut self, toml: &str) -> Self {
        self.shim = Some(toml.to_owned());
        self.handlers.push(WRAPPED.to_owned());
        self
    }

    /// The same with one more handler, `coroner-NAME`, for which the wrapper's configuration has a
    /// table `[runtime.NAME]`.
    #[must_use]
    pub fn wrapped_too(mut self, name: &str) -> Self {
        self.handlers.push(format!("{WRAPPED}-{name}"));
        self
    }

    pub(super) fn shim_config(&self) -> Option<&str> {
        self.shim.as_deref()
    }

    pub(super) fn handlers(&self) -> &[String] {
        &self.handlers
    }
}
