//! The cache of compiled components, in a directory that only the router can write to. An entry
//! that is missing, damaged or of another engine is compiled again.
//! The field's name: compile cache.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::compile::{CompileError, compile};
use super::host::Host;
use super::trust;

/// Entries kept. Without a bound a directory that changes every minute would fill the disk.
const ENTRIES: usize = 128;
/// What an entry was compiled by and for; it changes with the settings in `host`. The engine writes
/// its own version and the processor's features into each entry and checks them.
const COMPILED_BY: &str =
    concat!("coroner ", env!("CARGO_PKG_VERSION"), " wasmtime 48.0.8 fuel epochs 16MiB");

/// The directory of compiled components.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    /// `None`: no cache, each component is compiled when it is needed.
    directory: Option<PathBuf>,
}

/// A component's bytes in a file that is private to this process: what is hashed is what is
/// compiled.
pub(super) struct Bytes {
    file: File,
    /// SHA-256, hex.
    pub(super) digest: String,
    pub(super) size: u64,
}

impl Bytes {
    /// Copies at most `limit` bytes. `None`: there are more.
    pub(super) fn copy(from: impl Read, limit: u64) -> io::Result<Option<Self>> {
        let file = File::from(memfd_create("policy", MemfdFlags::CLOEXEC)?);
        let mut hashing = Hashing { file, hash: Sha256::new() };
        let size = io::copy(&mut from.take(limit + 1), &mut hashing)?;
        if size > limit {
            return Ok(None);
        }
        Ok(Some(Self { file: hashing.file, digest: format!("{:x}", hashing.hash.finalize()), size }))
    }

    /// A second handle of the same bytes.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, digest: self.digest.clone(), size: self.size })
    }

    /// Opens the bytes as a file, at its start.
    pub(super) fn open(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Cache {
    /// Uses the directory if it exists or can be created and only this user can write to it.
    /// Otherwise logs a warning and works without a cache.
    pub(super) fn open(directory: Option<&Path>) -> Self {
        let Some(directory) = directory else { return Self { directory: None } };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        match made.map_err(|error| error.to_string()).and_then(|()| trust::directory(directory)) {
            Ok(()) => Self { directory: Some(directory.to_owned()) },
            Err(reason) => {
                tracing::warn!(
                    directory = %directory.display(),
                    reason,
                    "no cache for compiled policies: each start compiles them again"
                );
                Self { directory: None }
            }
        }
    }

    /// The path of the entry for these bytes, for this program and engine.
    fn entry(&self, digest: &str) -> Option<PathBuf> {
        let settings = format!("{:x}", Sha256::digest(COMPILED_BY));
        Some(self.directory.as_ref()?.join(format!("{digest}-{}.cwasm", &settings[..16])))
    }

    /// The cached component; `None`: there is no usable entry.
    pub(super) fn get(&self, host: &Host, digest: &str) -> Option<Component> {
        let entry = self.entry(digest)?;
        let file = File::open(&entry).ok()?;
        let sum = fs::read_to_string(sum_of(&entry)).ok()?;
        if hash(&file).ok()? != sum.trim() {
            tracing::warn!(entry = %entry.display(), "compiled policy is damaged; compiling again");
            return None;
        }
        match load(host, &file) {
            Ok(component) => {
                // The modification time is the time of last use, for eviction; in a read-only cache
                // this fails, without effect.
                file.set_modified(SystemTime::now()).unwrap_or(());
                Some(component)
            }
            Err(error) => {
                tracing::info!(entry = %entry.display(), %error, "compiled policy is of another engine; compiling again");
                None
            }
        }
    }

    /// Compiles a component and writes the entry. Blocks.
    pub(super) fn compile(&self, host: &Host, bytes: &Bytes) -> Result<Component, CompileError> {
        let failed = |source| CompileError::Run { program: "its files".to_owned(), source };
        let settings = &host.settings().compile;
        let out = File::from(memfd_create("compiled", MemfdFlags::CLOEXEC).map_err(|it| failed(it.into()))?);
        compile(settings, bytes.open().map_err(failed)?, out.try_clone().map_err(failed)?)?;
        if let Some(entry) = self.entry(&bytes.digest) {
            match keep(&entry, &out) {
                Ok(file) => {
                    self.prune();
                    return load(host, &file).map_err(|error| CompileError::Refused(error.to_string()));
                }
                Err(error) => {
                    tracing::warn!(entry = %entry.display(), %error, "cannot write the compiled policy to the cache");
                }
            }
        }
        load(host, &out).map_err(|error| CompileError::Refused(error.to_string()))
    }

    /// Removes the least recently used entries.
    fn prune(&self) {
        let Some(entries) = self.directory.as_ref().and_then(|it| fs::read_dir(it).ok()) else { return };
        let mut entries: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let is_entry = entry.path().extension().is_some_and(|it| it == "cwasm");
                is_entry.then_some(())?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        entries.sort();
        let many = entries.len().saturating_sub(ENTRIES);
        for (_, entry) in entries.drain(..many) {
            if let Err(error) = fs::remove_file(&entry).and_then(|()| fs::remove_file(sum_of(&entry))) {
                tracing::warn!(entry = %entry.display(), %error, "cannot remove an old compiled policy from the cache");
            }
        }
    }
}

fn sum_of(entry: &Path) -> PathBuf {
    entry.with_extension("sha256")
}

/// Writes the entry first and its checksum after it: an entry without a checksum is ignored.
fn keep(entry: &Path, compiled: &File) -> io::Result<File> {
    let from_start = File::open(format!("/proc/self/fd/{}", compiled.as_raw_fd()))?;
    write_whole(entry, from_start)?;
    let file = File::open(entry)?;
    write_whole(&sum_of(entry), hash(&file)?.as_bytes())?;
    Ok(file)
}

fn write_whole(path: &Path, mut from: impl Read) -> io::Result<()> {
    let mut name = OsString::from(path);
    name.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(name);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    io::copy(&mut from, &mut file)?;
    fs::rename(&partial, path)
}

fn hash(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Maps the compiled code: the pages belong to the file, not to the router's own memory.
#[expect(
    unsafe_code,
    reason = "the one place that loads compiled code: the router's own, from a process of its own"
)]
pub(super) fn load(host: &Host, file: &File) -> wasmtime::Result<Component> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the bytes came from `compile` or `compiled_in_process`, through a memory file or a directory that only root
    // and this user can write to, and match the checksum written with them. The engine recognizes a
    // file of another engine by its header.
    unsafe { Component::deserialize_file(host.engine(), path) }
}
