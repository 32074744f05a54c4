//! How a containerd differs from this machine's stock one.

use std::path::PathBuf;

use anyhow::Result;

use crate::root;

/// The CRI runtime handler of pods with the stock shim.
pub const STOCK: &str = "runc";
/// The CRI runtime handler of pods with a wrapped shim.
pub const WRAPPED: &str = "coroner";

/// Whose containerd, runc and shim run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Release {
    /// This machine's.
    #[default]
    Host,
    /// Debian trixie's: containerd 1.7. `cargo xtask next` gets it.
    Trixie,
    /// Debian sid's: containerd 2. `cargo xtask next --sid` gets it, for runs by hand.
    Sid,
}

impl Release {
    /// The folder that holds it; none for this machine's.
    pub(super) fn folder(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Host => Ok(None),
            Self::Trixie => root::made("trixie", "cargo xtask next").map(Some),
            Self::Sid => root::made("sid", "cargo xtask next --sid").map(Some),
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

    /// The same with a second handler, `coroner`, whose shim is wrapped. `toml` is the wrapper's configuration, in which `@DIR@` stands
    /// for containerd's folder.
    #[must_use]
    pub fn wrapped(mut self, toml: &str) -> Self {
        self.shim = Some(toml.to_owned());
        self.handlers.push(WRAPPED.to_owned());
        self
    }

    /// The same with one more handler, `coroner-NAME`, for which the wrapper's configuration has a table `[runtime.NAME]`.
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
