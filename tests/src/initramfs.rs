//! The first file system of a test guest: a cpio archive, in the form the kernel unpacks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Regular file, folder and link: inode(7).
const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// An archive being written: "newc", Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Initramfs {
    /// An executable file, and the folders above it.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        for (at, _) in path.match_indices('/') {
            self.folder(&path[..at]);
        }
        self.entry(path, FILE, content);
    }

    /// A folder.
    pub fn folder(&mut self, path: &str) {
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK, to.as_bytes());
    }

    /// A program of this machine with the libraries it is linked with.
    pub fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        let listed = Command::new("ldd").arg(program).output().context("starting ldd")?;
        ensure!(listed.status.success(), "ldd {}: {listed:?}", program.display());
        for library in
            String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|it| it.starts_with('/'))
        {
            let inside = library.trim_start_matches('/');
            if self.folders.insert(library.to_owned()) {
                self.file(inside, &fs::read(library).with_context(|| library.to_owned())?);
            }
        }
        self.file(path, &fs::read(program).with_context(|| program.display().to_string())?);
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a path");
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
