//! `plugins/dist/manifest.json`: what the bundled policies were built from and with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The whole file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// What built them all.
    pub(crate) toolchain: Identity,
    /// By file name.
    pub(crate) files: BTreeMap<String, File>,
}

/// Two toolchains with the same identity give the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// `rustc -vV`.
    pub(crate) rustc: String,
    /// The standard library: that which came with the compiler, or the package it is built from.
    pub(crate) std: String,
    /// The linker and its version.
    pub(crate) linker: String,
}

/// One component.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// Of its bytes, in hex.
    pub(crate) sha256: String,
    /// Its length in bytes.
    pub(crate) size: usize,
    /// Hash of the entries of Cargo.lock that it depends on.
    pub(crate) lock: String,
}

impl Manifest {
    /// Reads that of a folder, if there is one.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join("manifest.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display())).map(Some)
    }

    /// Writes it into a folder.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join("manifest.json");
        let text = serde_json::to_string_pretty(self).context("cannot write the manifest")?;
        fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Identity {
    /// The compiler's first line.
    pub(crate) fn name(&self) -> &str {
        self.rustc.lines().next().unwrap_or_default()
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        format!("  {}\n  std: {}\n  linker: {}", self.name(), self.std, self.linker)
    }
}

impl File {
    /// Measures it.
    pub(crate) fn of(bytes: &[u8], lock: String) -> Self {
        Self { sha256: hex(bytes), size: bytes.len(), lock }
    }
}

/// The SHA-256 of bytes, in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_reads_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        let files = [("a.wasm".to_owned(), File::of(b"abc", "lock".to_owned()))].into();
        let manifest = Manifest { toolchain: Identity::default(), files };
        assert!(manifest.files["a.wasm"].sha256.starts_with("ba7816bf8f01cfea"));
        manifest.write(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(manifest));
    }
}
